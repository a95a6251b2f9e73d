//! The attribute macros `#[request]`, `#[event]` and `#[message]`.
//!
//! They turn a struct or enum into a message: archived by rkyv, with a stable name, a fingerprint of its
//! layout and, if it is sent by itself, a key and the types of its answers. Three steps, a file each:
//! `options` reads what stands in the brackets, `item` accepts or refuses the type (`was` the former names in
//! it), `expand` writes the code.
//! Errors point at what is wrong and say what to write instead.
//!
//! The generated code names everything through `::catga::__codec`, so a user's crate needs no dependency but
//! `catga`.

mod expand;
mod item;
mod options;
mod was;

use proc_macro::TokenStream;

use crate::options::{Options, Role};

/// Makes a type a message that is part of others, or a reply, or an error: archived layout, stable name.
///
/// Options: `name = "place_order"` (default: the type's name) and `version = 2` (default 1) name it between
/// nodes.
///
/// ```ignore
/// #[message]
/// pub struct Line { pub sku: u32, pub quantity: u32, pub cents: u64 }
/// ```
///
/// # Renaming
///
/// Nodes exchange a message only if they have the same layout of it, names included. `#[was("..")]` tells the
/// former name of a field or variant, in this macro as in the other two:
///
/// ```ignore
/// #[message]
/// pub struct Line { pub sku: u32, pub quantity: u32, #[was("cents")] pub price_cents: u64 }
/// ```
///
/// The message then passes between nodes that were built before the rename and after it, also where the type
/// lies within others. Type, order and tag stay as they are: a node that has them otherwise is refused as ever.
///
/// All marks in a message, its reply and its error count together: a node understands the names in its source,
/// and those that these had before everything that is marked was renamed. So mark what was renamed since the
/// release that the other nodes run, and with the next rename take the marks of the last one away. A swap of
/// names is two marks.
///
/// A renamed key is the same key. Fields without names are known by their positions; they, and types as a
/// whole, take no `was`.
#[proc_macro_attribute]
pub fn message(options: TokenStream, item: TokenStream) -> TokenStream {
    run(Role::Message, options, item)
}

/// Makes a type an event: published, never answered.
///
/// Options and former names: those of [`#[message]`](macro@message), and `key = field`: the event then goes to the shard that owns the key.
///
/// ```ignore
/// #[event(key = order)]
/// pub struct OrderCreated { pub order: u64 }
/// ```
#[proc_macro_attribute]
pub fn event(options: TokenStream, item: TokenStream) -> TokenStream {
    run(Role::Event, options, item)
}

/// Makes a type a request: sent to one handler, answered exactly once.
///
/// Options and former names: those of [`#[event]`](macro@event), `reply = Type` (default `()`) and `error = Type` (default `Fault`), both
/// messages themselves.
///
/// ```ignore
/// #[request(reply = OrderPlaced, error = OrderRejected, key = customer, name = "place_order", version = 2)]
/// pub struct PlaceOrder { pub customer: u64, pub lines: Vec<Line> }
/// ```
#[proc_macro_attribute]
pub fn request(options: TokenStream, item: TokenStream) -> TokenStream {
    run(Role::Request, options, item)
}

fn run(role: Role, options: TokenStream, item: TokenStream) -> TokenStream {
    let expanded = Options::parse(role, options.into()).and_then(|options| {
        let item = syn::parse(item)?;
        item::accept(&item, &options)?;
        expand::expand(item, &options)
    });
    expanded.unwrap_or_else(|error| error.into_compile_error()).into()
}
