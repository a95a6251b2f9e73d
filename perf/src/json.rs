//! JSON objects, written one field at a time in the order given. Reading is left to the tools that do it well.

use std::fmt::Write;

/// An object that is being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object(String);

impl Object {
    /// `{}`.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A string.
    pub(crate) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.raw(name, &quoted(value))
    }

    /// A string, or null.
    pub(crate) fn text_or_null(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        self.raw(name, &value.map_or_else(|| "null".into(), quoted))
    }

    /// A number, or null; also null where it is not finite, which JSON cannot say.
    pub(crate) fn number(&mut self, name: &str, value: Option<f64>) -> &mut Self {
        match value.filter(|value| value.is_finite()) {
            Some(value) => self.raw(name, &number(value)),
            None => self.raw(name, "null"),
        }
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        self.raw(name, if value { "true" } else { "false" })
    }

    /// An object in the object.
    pub(crate) fn object(&mut self, name: &str, value: &Self) -> &mut Self {
        self.raw(name, &value.line())
    }

    fn raw(&mut self, name: &str, value: &str) -> &mut Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{comma}{}:{value}", quoted(name));
        self
    }

    /// The whole object on one line, without the line's end.
    pub(crate) fn line(&self) -> String {
        format!("{{{}}}", self.0)
    }
}

/// Six digits that matter, and no exponent: enough for any figure here, and readable.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (5 - magnitude).clamp(0, 12) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for symbol in text.chars() {
        match symbol {
            '"' | '\\' => quoted.extend(['\\', symbol]),
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_text_is_escaped() {
        let mut inner = Object::new();
        inner.text("a\"b", "c\\d\n");
        let mut object = Object::new();
        object.object("o", &inner).flag("f", true).text_or_null("n", None).number("x", Some(1.5));
        assert_eq!(object.line(), r#"{"o":{"a\"b":"c\\d\u000a"},"f":true,"n":null,"x":1.5}"#);
        assert_eq!(Object::new().line(), "{}");
    }

    #[test]
    fn numbers_have_no_exponent_and_six_digits() {
        for (value, text) in [
            (0.0, "0"),
            (999_871.0, "999871"),
            (19_123_456.0, "19123456"),
            (0.012_345_678, "0.0123457"),
            (84.0, "84"),
            (310.512_34, "310.512"),
            (1e-9, "0.000000001"),
        ] {
            assert_eq!(number(value), text);
        }
        let mut object = Object::new();
        object.number("nan", Some(f64::NAN)).number("none", None);
        assert_eq!(object.line(), r#"{"nan":null,"none":null}"#);
    }
}
