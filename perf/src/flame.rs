//! `catga-perf fold`: from the text of `perf script -F comm,period,ip,sym` to a flame graph in SVG.
//!
//! ```text
//! tcp-caller    1003009              one sample: thread name and period (nanoseconds under cpu-clock),
//!     ffffffff821fdb89 write         then the stack, innermost first, then an empty line
//!         55d0c0de memcpy
//! ```
//!
//! Samples with the same stack are added up in a tree whose root is the thread's name; a box is as wide as the CPU time
//! spent in it and in what it called. The whole name, the microseconds and the share are the box's title (hover).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, Write as _};

use crate::plot::escaped;

const WIDTH: f64 = 1_400.0;
const ROW: f64 = 17.0;
const MARGIN: f64 = 10.0;
const TOP: f64 = 44.0;
/// Of the font below, so that names are cut where the box ends.
const LETTER: f64 = 6.6;
/// Boxes narrower than this cannot be seen.
const NARROWEST: f64 = 0.3;

/// A function, or the whole, and what it called.
#[derive(Debug, Default)]
struct Call {
    cpu_ns: u64,
    calls: BTreeMap<String, Call>,
}

/// Reads standard input to its end and writes the SVG to standard output.
pub(crate) fn fold_stdin() -> Result<(), String> {
    let lines = std::io::stdin().lock().lines().map(|line| line.map_err(|problem| problem.to_string()));
    let tree = fold(lines)?;
    if tree.cpu_ns == 0 {
        return Err(
            "no samples on standard input; it takes the output of: perf script -F comm,period,ip,sym".into(),
        );
    }
    std::io::stdout().write_all(svg(&tree).as_bytes()).map_err(|problem| problem.to_string())
}

/// Adds up the samples.
fn fold(lines: impl Iterator<Item = Result<String, String>>) -> Result<Call, String> {
    let mut root = Call::default();
    let mut sample: Option<(String, u64)> = None;
    let mut stack: Vec<String> = Vec::new();
    // An empty line more, so that the last sample ends too.
    for line in lines.chain([Ok(String::new())]) {
        let line = line?;
        if line.trim().is_empty() {
            if let Some((thread, cpu_ns)) = sample.take() {
                root.add(std::iter::once(thread).chain(stack.drain(..).rev()), cpu_ns);
            }
            stack.clear();
        } else if line.starts_with(char::is_whitespace) && sample.is_some() {
            stack.push(function(&line));
        } else if !line.starts_with('#') {
            sample = Some(header(&line)?);
        }
    }
    Ok(root)
}

/// Thread name, which may hold spaces, and period.
fn header(line: &str) -> Result<(String, u64), String> {
    let (thread, period) = line.trim().rsplit_once(char::is_whitespace).unwrap_or(("", line));
    match period.trim_end_matches(':').parse() {
        Ok(period) if !thread.is_empty() => Ok((thread.trim().to_owned(), period)),
        _ => Err(format!("'{line}' is no sample; use: perf script -F comm,period,ip,sym")),
    }
}

/// The name in `  address name+0x12 (file)`, readable.
fn function(line: &str) -> String {
    let line = line.trim();
    let name = line.split_once(char::is_whitespace).map_or("[unknown]", |(_, name)| name.trim());
    let name = name.rsplit_once("+0x").map_or(name, |(name, _)| name);
    format!("{:#}", rustc_demangle::demangle(name))
}

impl Call {
    fn add(&mut self, stack: impl Iterator<Item = String>, cpu_ns: u64) {
        self.cpu_ns += cpu_ns;
        let mut call = self;
        for name in stack {
            call = call.calls.entry(name).or_default();
            call.cpu_ns += cpu_ns;
        }
    }

    fn depth(&self) -> usize {
        1 + self.calls.values().map(Self::depth).max().unwrap_or(0)
    }
}

/// The whole document, roots at the bottom.
fn svg(root: &Call) -> String {
    let height = TOP + ROW * root.depth() as f64 + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         font-family=\"monospace\" font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fdfdf6\"/>\n\
         <text x=\"{MARGIN}\" y=\"26\" font-size=\"15\">CPU time: {} µs sampled; each box shows its name and cpu_us, \
         hover for both in full</text>\n",
        root.cpu_ns / 1_000
    );
    let scale = (WIDTH - 2.0 * MARGIN) / root.cpu_ns as f64;
    let picture = Picture { total_ns: root.cpu_ns, scale };
    picture.draw(&mut svg, "all", root, MARGIN, height - MARGIN - ROW);
    svg.push_str("</svg>\n");
    svg
}

struct Picture {
    total_ns: u64,
    scale: f64,
}

impl Picture {
    /// Draws a call and, above it, what it called.
    fn draw(&self, svg: &mut String, name: &str, call: &Call, left: f64, top: f64) {
        let width = call.cpu_ns as f64 * self.scale;
        if width < NARROWEST {
            return;
        }
        let (cpu_us, share) = (call.cpu_ns / 1_000, call.cpu_ns as f64 / self.total_ns as f64 * 100.0);
        let label = fitting(&format!("{name} {cpu_us}"), width);
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<g><title>{} cpu_us={cpu_us} {share:.2} %</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
             height=\"{:.1}\" rx=\"1\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            escaped(name),
            ROW - 1.0,
            colour(name),
            left + 3.0,
            top + 12.0,
            escaped(&label)
        );
        let mut left = left;
        for (name, inner) in &call.calls {
            self.draw(svg, name, inner, left, top - ROW);
            left += inner.cpu_ns as f64 * self.scale;
        }
    }
}

/// As much of the label as the box holds, or nothing.
fn fitting(label: &str, width: f64) -> String {
    let letters = ((width - 6.0) / LETTER).max(0.0) as usize;
    match label.chars().count() {
        count if count <= letters => label.to_owned(),
        _ if letters < 3 => String::new(),
        _ => label.chars().take(letters - 2).chain("..".chars()).collect(),
    }
}

/// The same function has the same warm colour in every graph.
fn colour(name: &str) -> String {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let (red, green, blue) = (205 + hash % 50, 80 + (hash >> 8) % 130, (hash >> 16) % 60);
    format!("rgb({red},{green},{blue})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::tests::well_formed;

    const SAMPLES: &str = "\
# a comment of perf
tcp caller    1000000\x20
\tffffffff821fdb89 _raw_spin_lock+0x19
\t55d0c0de0000 _RNvCs1234_7mycrate3foo+0x1 (/bin/catga-perf)

tcp caller    3000000:
\t55d0c0de0000 _RNvCs1234_7mycrate3foo

other    500000
\tdeadbeef
";

    fn tree() -> Call {
        fold(SAMPLES.lines().map(|line| Ok(line.to_owned()))).unwrap()
    }

    #[test]
    fn samples_with_the_same_stack_add_up() {
        let root = tree();
        assert_eq!(root.cpu_ns, 4_500_000);
        let foo = &root.calls["tcp caller"].calls["mycrate::foo"];
        assert_eq!(foo.cpu_ns, 4_000_000);
        assert_eq!(foo.calls["_raw_spin_lock"].cpu_ns, 1_000_000);
        assert_eq!(root.calls["other"].calls["[unknown]"].cpu_ns, 500_000);
    }

    #[test]
    fn the_graph_is_well_formed_and_says_name_and_time() {
        let svg = svg(&tree());
        assert!(well_formed(&svg), "{svg}");
        assert!(svg.contains("<title>mycrate::foo cpu_us=4000 88.89 %</title>"));
    }

    #[test]
    fn what_is_no_sample_is_refused() {
        assert!(fold(["hello world".to_owned()].into_iter().map(Ok)).is_err());
    }

    #[test]
    fn labels_fit_their_box() {
        assert_eq!(fitting("name 12", 100.0), "name 12");
        assert_eq!(fitting("a very long name 12", 60.0), "a very..".chars().take(8).collect::<String>());
        assert_eq!(fitting("name", 10.0), "");
    }
}
