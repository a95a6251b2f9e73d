//! The attribute macros `#[request]`, `#[event]` and `#[message]`.
//!
//! They turn a struct or enum into a message: archived by rkyv, with a stable name, a fingerprint of its
//! layout and, if it is sent by itself, a key and the types of its answers. Three steps, a file each:
//! `options` reads what stands in the brackets, `item` accepts or refuses the type, `expand` writes the code.
//! Errors point at what is wrong and say what to write instead.
//!
//! The generated code names everything through `::catga::__codec`, so a user's crate needs no dependency but
//! `catga`.

mod expand;
mod item;
mod options;

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
#[proc_macro_attribute]
pub fn message(options: TokenStream, item: TokenStream) -> TokenStream {
    run(Role::Message, options, item)
}

/// Makes a type an event: published, never answered.
///
/// Options: those of `#[message]`, and `key = field`: the event then goes to the shard that owns the key.
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
/// Options: those of `#[event]`, `reply = Type` (default `()`) and `error = Type` (default `Fault`), both
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
