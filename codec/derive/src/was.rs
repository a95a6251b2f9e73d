//! Former names: `#[was("cents")]` on a field or variant that is called something else now.
//!
//! A name is no part of an archive, only of the fingerprint, so whoever renames a field may say so and be
//! understood by nodes that know the former name. Both fingerprints go by position: `a` that was `b` beside
//! `b` that was `a` is a swap of names, and sound. What cannot be true is refused: a former type with two
//! fields of one name never existed.

use proc_macro2::{Ident, Span};
use syn::ext::IdentExt;
use syn::{Attribute, Data, DeriveInput, Error, Fields, LitStr, Result};

/// Refuses former names that no former type can have had, and those of what has no name.
pub(crate) fn accept(item: &DeriveInput) -> Result<()> {
    if let Some(attribute) = item.attrs.iter().find(|attribute| is_was(attribute)) {
        let message =
            "`was` is for fields and variants; a type keeps its name between nodes by `name = \"..\"`";
        return Err(Error::new_spanned(attribute, message));
    }
    match &item.data {
        Data::Struct(data) => accept_fields(&data.fields),
        Data::Enum(data) => {
            let variants = data.variants.iter().map(|variant| (&variant.ident, &*variant.attrs));
            accept_names("variant", variants)?;
            data.variants.iter().try_for_each(|variant| accept_fields(&variant.fields))
        }
        Data::Union(_) => Ok(()),
    }
}

/// The former name of what is called `name` now: the same one if the attributes tell no other.
pub(crate) fn former(name: &str, attributes: &[Attribute]) -> Result<String> {
    Ok(told(attributes)?.map_or_else(|| name.to_owned(), |(former, _)| former))
}

/// Takes the attributes off: the compiler knows nothing of them.
pub(crate) fn strip(item: &mut DeriveInput) {
    let off = |attributes: &mut Vec<Attribute>| attributes.retain(|attribute| !is_was(attribute));
    match &mut item.data {
        Data::Struct(data) => data.fields.iter_mut().for_each(|field| off(&mut field.attrs)),
        Data::Enum(data) => {
            for variant in &mut data.variants {
                off(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| off(&mut field.attrs));
            }
        }
        Data::Union(_) => {}
    }
}

fn is_was(attribute: &Attribute) -> bool {
    attribute.path().is_ident("was")
}

fn accept_fields(fields: &Fields) -> Result<()> {
    if let Fields::Named(_) = fields {
        let named = fields.iter().filter_map(|field| Some((field.ident.as_ref()?, &*field.attrs)));
        return accept_names("field", named);
    }
    match fields.iter().flat_map(|field| &field.attrs).find(|attribute| is_was(attribute)) {
        None => Ok(()),
        Some(attribute) => Err(Error::new_spanned(
            attribute,
            "a field without a name is known by its position, and that was never another; remove this",
        )),
    }
}

/// The names of a struct, of a variant, or of the variants themselves.
fn accept_names<'a>(what: &str, named: impl Iterator<Item = (&'a Ident, &'a [Attribute])>) -> Result<()> {
    let mut names: Vec<(String, Option<Span>)> = Vec::new();
    for (ident, attributes) in named {
        let present = ident.unraw().to_string();
        let (former, span) = match told(attributes)? {
            None => (present, None),
            Some((former, span)) if former == present => {
                let message =
                    format!("`{former}` is the name of this {what} now; give the one that it had before");
                return Err(Error::new(span, message));
            }
            Some((former, span)) => (former, Some(span)),
        };
        if let Some((_, other)) = names.iter().find(|(name, _)| *name == former) {
            let message = format!(
                "two {what}s were called `{former}` then, and no type can have had that; a {what} that took the name of another \
                 says so, and so does the other"
            );
            // At least one of the two was told, or the compiler has refused two of one name by itself.
            return Err(Error::new(span.or(*other).unwrap_or_else(|| ident.span()), message));
        }
        names.push((former, span));
    }
    Ok(())
}

/// What the attribute says, and where.
fn told(attributes: &[Attribute]) -> Result<Option<(String, Span)>> {
    let mut all = attributes.iter().filter(|attribute| is_was(attribute));
    let Some(attribute) = all.next() else { return Ok(None) };
    if let Some(second) = all.next() {
        let message =
            "one former name at most: that by which the nodes still know it that are not updated yet";
        return Err(Error::new_spanned(second, message));
    }
    let Ok(literal) = attribute.parse_args::<LitStr>() else {
        let message = "write the former name as `#[was(\"cents\")]`";
        return Err(Error::new_spanned(attribute, message));
    };
    let name = literal.value();
    match literal.parse_with(Ident::parse_any) {
        Ok(ident) if ident != "_" => Ok(Some((ident.unraw().to_string(), literal.span()))),
        _ if name.is_empty() => Err(Error::new(literal.span(), "a former name must not be empty")),
        _ => Err(Error::new(literal.span(), format!("`{name}` can have been the name of nothing in Rust"))),
    }
}
