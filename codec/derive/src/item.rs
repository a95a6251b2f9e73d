//! Accepts or refuses the type below the attribute, before any code is written.
//!
//! What can be seen in the syntax is refused here, with the field and the remedy named: generics, unions,
//! references, fields that are conditional (nodes would differ), well-known containers without a flat
//! archive. What only the compiler can tell (is this path a message, or an alias of a map?) is left to the
//! trait `Shape`.

use quote::ToTokens;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Field, Fields, GenericArgument, Ident, Member, Meta, PathArguments,
    Result, Token, Type,
};

use crate::options::Options;
use crate::was;

/// Tags of archived enums have one byte.
const VARIANTS_MAX: usize = 256;

pub(crate) fn accept(item: &DeriveInput, options: &Options) -> Result<()> {
    let attribute = options.role.attribute();
    if !item.generics.params.is_empty() || item.generics.where_clause.is_some() {
        return Err(Error::new(
            if item.generics.params.is_empty() { item.ident.span() } else { item.generics.span() },
            format!("a message has one layout and cannot be generic; put {attribute} on a type for each use"),
        ));
    }
    item.attrs.iter().try_for_each(accept_type_attribute)?;
    match &item.data {
        Data::Struct(data) => {
            data.fields.iter().enumerate().try_for_each(|(i, field)| accept_field(&item.ident, i, field))?
        }
        Data::Enum(data) => {
            if item.ident == "Tag" {
                let message = "rkyv's own code has an `ArchivedTag` for enums; give this one another name";
                return Err(Error::new(item.ident.span(), message));
            }
            if data.variants.is_empty() || data.variants.len() > VARIANTS_MAX {
                let message = format!("an enum that travels has 1 to {VARIANTS_MAX} variants");
                return Err(Error::new(item.ident.span(), message));
            }
            for variant in &data.variants {
                refuse_conditions(&variant.attrs)?;
                variant
                    .fields
                    .iter()
                    .enumerate()
                    .try_for_each(|(i, field)| accept_field(&item.ident, i, field))?;
            }
        }
        Data::Union(data) => {
            let message =
                format!("a union does not say which field it holds; put {attribute} on an enum instead");
            return Err(Error::new(data.union_token.span, message));
        }
    }
    was::accept(item)?;
    options.key.as_ref().map_or(Ok(()), |key| accept_key(key, item))
}

fn accept_key(key: &Member, item: &DeriveInput) -> Result<()> {
    let Data::Struct(data) = &item.data else {
        return Err(Error::new(
            key.span(),
            "the variants of an enum have no field in common; a key needs a struct",
        ));
    };
    if data.fields.members().any(|member| member == *key) {
        return Ok(());
    }
    let fields: Vec<_> =
        data.fields.members().map(|member| format!("`{}`", member.to_token_stream())).collect();
    let fields = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
    let message = format!(
        "`{}` has no field `{}` to be its key; its fields: {fields}",
        item.ident,
        key.to_token_stream()
    );
    Err(Error::new(key.span(), message))
}

fn accept_field(owner: &Ident, index: usize, field: &Field) -> Result<()> {
    let name = field.ident.as_ref().map_or_else(|| index.to_string(), ToString::to_string);
    refuse_conditions(&field.attrs)?;
    if let Some(rkyv) = field.attrs.iter().find(|attribute| attribute.path().is_ident("rkyv")) {
        let message = format!(
            "field `{name}`: the archived form of a message's field follows from its type; remove this"
        );
        return Err(Error::new_spanned(rkyv, message));
    }
    accept_type(owner, &name, &field.ty)
}

/// Refuses what has no archived form by its syntax alone; looks into arrays, parentheses and generic
/// arguments.
fn accept_type(owner: &Ident, field: &str, ty: &Type) -> Result<()> {
    let remedy = match ty {
        Type::Reference(_) => {
            "a reference ends with this process; own the value (`String`, `Vec<T>`, `Box<T>`)"
        }
        Type::Ptr(_) | Type::BareFn(_) => "an address means nothing in another process; send a value",
        Type::Tuple(tuple) if !tuple.elems.is_empty() => {
            "a tuple has no field names to compare; make it a struct with `#[message]`"
        }
        Type::Slice(_) => "a slice has no size of its own; use `Vec<T>` or `[T; N]`",
        Type::TraitObject(_) | Type::ImplTrait(_) => {
            "a trait has no layout; make an enum of the types it stands for"
        }
        Type::Never(_) => "a value of this type never exists; remove the field",
        Type::Array(array) => return accept_type(owner, field, &array.elem),
        Type::Paren(inner) => return accept_type(owner, field, &inner.elem),
        Type::Group(inner) => return accept_type(owner, field, &inner.elem),
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else { return Ok(()) };
            if path.path.is_ident(owner) || path.path.is_ident("Self") {
                "a message that contains itself has no bounded depth; send the parts in a `Vec` that refer to each other by position"
            } else if path.path.is_ident("usize") || path.path.is_ident("isize") {
                "its width depends on the machine; use `u32` or `u64`, `i32` or `i64`"
            } else if let PathArguments::AngleBracketed(arguments) = &last.arguments {
                match refused_container(&last.ident) {
                    Some(remedy) => remedy,
                    None => {
                        return arguments
                            .args
                            .iter()
                            .try_for_each(|argument| accept_argument(owner, field, argument));
                    }
                }
            } else {
                return Ok(());
            }
        }
        _ => return Ok(()),
    };
    Err(Error::new_spanned(ty, format!("field `{field}` may not cross nodes: {remedy}")))
}

fn accept_argument(owner: &Ident, field: &str, argument: &GenericArgument) -> Result<()> {
    match argument {
        GenericArgument::Type(inner) => accept_type(owner, field, inner),
        _ => Ok(()),
    }
}

/// Well-known containers that do not travel. A type with arguments cannot be a message, so no user's own is
/// hit by its name.
fn refused_container(container: &Ident) -> Option<&'static str> {
    Some(match container.to_string().as_str() {
        "HashMap" | "BTreeMap" => {
            "a map has no flat archive; use a `Vec` of a `#[message]` struct with key and value"
        }
        "HashSet" | "BTreeSet" | "VecDeque" | "BinaryHeap" | "LinkedList" => {
            "this collection has no flat archive; use `Vec<T>`"
        }
        "Rc" | "Arc" | "Weak" => "shared ownership ends with this process; use `Box<T>` or the value itself",
        "Cell" | "RefCell" | "Mutex" | "RwLock" | "OnceCell" | "OnceLock" => {
            "a cell only makes sense in one process; use its value"
        }
        "Cow" => "a borrow ends with this process; use `String` or `Vec<T>`",
        "Result" => "name the two cases; use an enum with `#[message]`",
        _ => return None,
    })
}

/// `#[cfg]` on a field would give nodes different layouts, and the macro sees the field either way.
fn refuse_conditions(attributes: &[Attribute]) -> Result<()> {
    match attributes.iter().find(|attribute| attribute.path().is_ident("cfg")) {
        None => Ok(()),
        Some(condition) => Err(Error::new_spanned(
            condition,
            "fields and variants of a message are the same on all nodes; make two messages, or use `Option<T>`",
        )),
    }
}

/// Of rkyv's own options on the type, those that change neither the layout nor the names.
fn accept_type_attribute(attribute: &Attribute) -> Result<()> {
    if !attribute.path().is_ident("rkyv") {
        return Ok(());
    }
    let options = attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)?;
    match options
        .iter()
        .find(|option| !option.path().is_ident("derive") && !option.path().is_ident("compare"))
    {
        None => Ok(()),
        Some(option) => Err(Error::new_spanned(
            option,
            "of rkyv's options a message takes `derive(..)` and `compare(..)`",
        )),
    }
}

/// The fields of a struct or variant with the names they have in a fingerprint.
pub(crate) fn named(fields: &Fields) -> impl Iterator<Item = (String, &Field)> {
    fields.iter().zip(fields.members()).map(|(field, member)| (member_name(&member), field))
}

/// The name of a field as it stands in a fingerprint: its position if it has none.
pub(crate) fn member_name(member: &Member) -> String {
    member.to_token_stream().to_string().trim_start_matches("r#").to_owned()
}
