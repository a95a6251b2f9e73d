//! What stands in the brackets: `#[request(reply = T, error = E, key = field, name = "..", version = N)]`.
//!
//! Each option at most once, only those that the attribute has, and values that make sense: a message of
//! version 0 or with a blank in its name would only fail later, on another node.

use proc_macro2::TokenStream;
use syn::meta::ParseNestedMeta;
use syn::parse::Parser;
use syn::{Error, LitInt, LitStr, Member, Result, Type};

/// The limit of the codec (`limits::MESSAGE_NAME_MAX_BYTES`); the generated code asserts that they agree.
pub(crate) const NAME_MAX_BYTES: usize = 128;

/// Which of the three attributes this is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Message,
    Event,
    Request,
}

impl Role {
    pub(crate) fn attribute(self) -> &'static str {
        match self {
            Self::Message => "#[message]",
            Self::Event => "#[event]",
            Self::Request => "#[request]",
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Message => "`name` and `version`",
            Self::Event => "`key`, `name` and `version`",
            Self::Request => "`reply`, `error`, `key`, `name` and `version`",
        }
    }
}

/// The options of one attribute.
pub(crate) struct Options {
    pub(crate) role: Role,
    pub(crate) reply: Option<Type>,
    pub(crate) error: Option<Type>,
    pub(crate) key: Option<Member>,
    pub(crate) name: Option<String>,
    pub(crate) version: u16,
}

impl Options {
    pub(crate) fn parse(role: Role, tokens: TokenStream) -> Result<Self> {
        let mut options = Self { role, reply: None, error: None, key: None, name: None, version: 1 };
        let mut seen: Vec<String> = Vec::new();
        let parser = syn::meta::parser(|meta| {
            let option = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            if seen.contains(&option) {
                return Err(meta.error(format!("`{option}` is given twice; keep one")));
            }
            options.set(&option, &meta)?;
            seen.push(option);
            Ok(())
        });
        parser.parse2(tokens)?;
        Ok(options)
    }

    fn set(&mut self, option: &str, meta: &ParseNestedMeta<'_>) -> Result<()> {
        match (option, self.role) {
            ("name", _) => self.name = Some(name(&meta.value()?.parse()?)?),
            ("version", _) => self.version = version(&meta.value()?.parse()?)?,
            ("key", Role::Event | Role::Request) => self.key = Some(meta.value()?.parse()?),
            ("reply", Role::Request) => self.reply = Some(meta.value()?.parse()?),
            ("error", Role::Request) => self.error = Some(meta.value()?.parse()?),
            _ => {
                let (attribute, options) = (self.role.attribute(), self.role.options());
                return Err(meta.error(format!("unknown option; {attribute} has {options}")));
            }
        }
        Ok(())
    }
}

fn name(literal: &LitStr) -> Result<String> {
    let name = literal.value();
    if name.is_empty() || name.len() > NAME_MAX_BYTES {
        let message =
            format!("a message's name has 1 to {NAME_MAX_BYTES} bytes, this one has {}", name.len());
        return Err(Error::new(literal.span(), message));
    }
    if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::new(literal.span(), "a message's name has no blanks; write `place_order`, say"));
    }
    Ok(name)
}

fn version(literal: &LitInt) -> Result<u16> {
    match literal.base10_parse() {
        Ok(version) if version > 0 => Ok(version),
        _ => Err(Error::new(literal.span(), "a version is a number from 1 to 65535")),
    }
}
