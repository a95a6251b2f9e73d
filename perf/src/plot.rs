//! Line charts as SVG, both axes logarithmic, drawn without a library: the two plots of a run need no more.
//!
//! Colours are one palette that people with colour-blindness can tell apart (Okabe and Ito); every point has its
//! figures as a title, which browsers show on hover.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 64.0;
const LEGEND_LINE: f64 = 20.0;
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// One line.
pub(crate) struct Series {
    /// In the legend.
    pub(crate) name: String,
    /// From left to right; what is not positive has no place on a logarithmic axis and is left out.
    pub(crate) points: Vec<(f64, f64)>,
}

/// One axis.
pub(crate) struct Axis {
    /// What it shows, with its unit.
    pub(crate) label: String,
    /// Places and their names; `None` for powers of ten.
    pub(crate) ticks: Option<Vec<(f64, String)>>,
}

/// A chart.
pub(crate) struct Chart {
    /// Above it.
    pub(crate) title: String,
    /// To the right.
    pub(crate) x: Axis,
    /// Upwards.
    pub(crate) y: Axis,
    /// The lines.
    pub(crate) series: Vec<Series>,
}

impl Chart {
    /// The whole document.
    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied()).filter(drawable);
        let x = Scale::over(points().map(|point| point.0), &self.x, LEFT, WIDTH - RIGHT);
        let y = Scale::over(points().map(|point| point.1), &self.y, HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        text(&mut svg, LEFT, TOP - 22.0, "start", "font-size=\"14\" font-weight=\"bold\"", &self.title);
        self.axes(&mut svg, &x, &y);
        for (index, series) in self.series.iter().enumerate() {
            draw(&mut svg, series, index, &x, &y);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String, x: &Scale, y: &Scale) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, label) in &x.ticks {
            let at = x.place(*value);
            line(svg, (at, TOP), (at, bottom));
            text(svg, at, bottom + 18.0, "middle", "", label);
        }
        for (value, label) in &y.ticks {
            let at = y.place(*value);
            line(svg, (LEFT, at), (right, at));
            text(svg, LEFT - 8.0, at + 4.0, "end", "", label);
        }
        text(svg, (LEFT + right) / 2.0, HEIGHT - 16.0, "middle", "", &self.x.label);
        let middle = (TOP + bottom) / 2.0;
        let turned = format!("transform=\"rotate(-90 18 {middle})\"");
        text(svg, 18.0, middle, "middle", &turned, &self.y.label);
    }
}

fn drawable(point: &(f64, f64)) -> bool {
    [point.0, point.1].iter().all(|value| value.is_finite() && *value > 0.0)
}

fn draw(svg: &mut String, series: &Series, index: usize, x: &Scale, y: &Scale) {
    let colour = COLOURS[index % COLOURS.len()];
    // The palette's second round is dashed.
    let dash = if index < COLOURS.len() { "" } else { " stroke-dasharray=\"6 3\"" };
    let points: Vec<_> = series.points.iter().filter(|point| drawable(point)).collect();
    let path: Vec<_> = points.iter().map(|(h, v)| format!("{:.1},{:.1}", x.place(*h), y.place(*v))).collect();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
        path.join(" ")
    );
    for (h, v) in points {
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{colour}\"><title>{}: {} at {}</title></circle>",
            x.place(*h),
            y.place(*v),
            escaped(&series.name),
            short(*v),
            short(*h)
        );
    }
    let (left, top) = (WIDTH - RIGHT + 16.0, TOP + 12.0 + LEGEND_LINE * index as f64);
    let _ = writeln!(
        svg,
        "<path d=\"M{left} {:.1}h24\" stroke=\"{colour}\" stroke-width=\"3\"{dash}/>",
        top - 4.0
    );
    text(svg, left + 32.0, top, "start", "", &series.name);
}

/// A logarithmic scale from values to places.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>, axis: &Axis, start: f64, end: f64) -> Self {
        let ends = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| (min.min(value), max.max(value)));
        let (min, max) = if ends.0 <= ends.1 { ends } else { (1.0, 10.0) };
        let whole = |decade: f64| 10_f64.powf(decade);
        let (from, to) = match axis.ticks {
            Some(_) => (min.log10(), max.log10()),
            None => (min.log10().floor(), max.log10().ceil()),
        };
        let to = if to - from < 1e-9 { from + 1.0 } else { to };
        let ticks = axis.ticks.clone().unwrap_or_else(|| {
            (from as i32..=to as i32)
                .map(|decade| (whole(f64::from(decade)), short(whole(f64::from(decade)))))
                .collect()
        });
        let within = |value: f64| (from - 1e-9..=to + 1e-9).contains(&value.log10());
        Self { from, to, start, end, ticks: ticks.into_iter().filter(|(value, _)| within(*value)).collect() }
    }

    fn place(&self, value: f64) -> f64 {
        self.start + (value.log10() - self.from) / (self.to - self.from) * (self.end - self.start)
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#ddd\" stroke-width=\"1\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, more: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{words}</text>");
}

fn short(value: f64) -> String {
    match value {
        large if large >= 1e6 => format!("{}M", trimmed(large / 1e6)),
        large if large >= 1e3 => format!("{}k", trimmed(large / 1e3)),
        small => trimmed(small),
    }
}

fn trimmed(value: f64) -> String {
    let text = if value < 1.0 { format!("{value:.4}") } else { format!("{value:.1}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// For use between tags and in quoted attributes.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for symbol in text.chars() {
        match symbol {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no way to say control characters.
            control if control < ' ' => escaped.push('\u{fffd}'),
            plain => escaped.push(plain),
        }
    }
    escaped
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Whether every tag is closed in order and nothing unescaped stands between them.
    pub(crate) fn well_formed(svg: &str) -> bool {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg.trim();
        while let Some(start) = rest.find('<') {
            let Some(end) = rest[start..].find('>').map(|end| start + end) else { return false };
            let tag = &rest[start + 1..end];
            if rest[..start].contains('>') || tag.matches('"').count() % 2 == 1 || tag.contains("NaN") {
                return false;
            }
            match tag.strip_prefix('/') {
                Some(closing) if open.pop() != Some(closing) => return false,
                Some(_) => {}
                None if tag.ends_with('/') => {}
                None => open.push(tag.split_whitespace().next().unwrap_or_default()),
            }
            rest = &rest[end + 1..];
        }
        open.is_empty() && rest.is_empty() && svg.starts_with("<svg ")
    }

    fn chart(points: Vec<(f64, f64)>) -> String {
        let axis = |label: &str| Axis { label: label.into(), ticks: None };
        let series = (0..8)
            .map(|index| Series { name: format!("a<b>&\"{index}\""), points: points.clone() })
            .collect();
        Chart { title: "t & u".into(), x: axis("x"), y: axis("y"), series }.svg()
    }

    #[test]
    fn charts_are_well_formed_whatever_is_in_them() {
        for points in [
            vec![],
            vec![(1.0, 1.0)],
            vec![(0.0, 5.0), (-1.0, 2.0), (f64::NAN, 1.0), (3.0, f64::INFINITY)],
            vec![(100_000.0, 12.0), (1_000_000.0, 84.0), (8_000_000.0, 9_000.0)],
        ] {
            let svg = chart(points);
            assert!(well_formed(&svg), "{svg}");
        }
    }

    #[test]
    fn what_is_not_well_formed_is_noticed() {
        for text in ["<svg ><a></svg>", "<svg ><a>x > y</a></svg>", "<svg ><a b=\"></a></svg>", "<svg >"] {
            assert!(!well_formed(text), "{text}");
        }
    }

    #[test]
    fn points_lie_inside_the_frame_in_order() {
        let axis = Axis { label: String::new(), ticks: None };
        let scale = Scale::over([3.0, 700.0].into_iter(), &axis, 0.0, 100.0);
        assert!(
            scale.place(3.0) >= 0.0 && scale.place(3.0) < scale.place(700.0) && scale.place(700.0) <= 100.0
        );
        assert_eq!(
            scale.ticks.iter().map(|tick| tick.1.as_str()).collect::<Vec<_>>(),
            ["1", "10", "100", "1k"]
        );
    }
}
