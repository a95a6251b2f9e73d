//! Writes the code for an accepted type.
//!
//! The type itself stays as it is, with rkyv's derives and a debuggable archive. Beside it come the
//! implementations of `Shape` (fingerprint and depth), `Message` and `ArchivedMessage` (name, index, the way
//! back), `Request` or `Event`, and assertions that name the type when its nesting is too deep. All generated
//! tokens carry the span of the macro, not of the user's code, so lints on the user's code
//! (`forbid(unsafe_code)` above all) do not see them; only field types carry their own, so that errors about
//! them point there.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DataEnum, DeriveInput, Error, Fields, Result};

use crate::item::{member_name, named};
use crate::options::{NAME_MAX_BYTES, Options, Role};
use crate::was;

pub(crate) fn expand(mut item: DeriveInput, options: &Options) -> Result<TokenStream> {
    let ident = &item.ident;
    let name = options.name.clone().unwrap_or_else(|| ident.unraw().to_string());
    if name.len() > NAME_MAX_BYTES {
        return Err(Error::new(
            ident.span(),
            format!("this name has over {NAME_MAX_BYTES} bytes; give `name = \"..\"`"),
        ));
    }
    let shape = shape(&item, &name, options)?;
    let message = message(ident, &name, options.version);
    let role = role(&item, options);
    let limits = limits(ident);
    let allowed = allowed(&item);
    was::strip(&mut item);
    Ok(quote! {
        #allowed

        #[derive(
            ::catga::__codec::rkyv::Archive,
            ::catga::__codec::rkyv::Serialize,
            ::catga::__codec::rkyv::Deserialize,
        )]
        #[rkyv(crate = ::catga::__codec::rkyv, derive(Debug))]
        #item

        const _: () = {
            #shape
            #message
            #role
            #limits
        };
    })
}

/// A bound for each field's type, ahead of everything: so the first error about a type that may not travel is
/// the one that says so, before those about rkyv's traits that follow from it.
fn allowed(item: &DeriveInput) -> TokenStream {
    let bounds = all_fields(item).into_iter().flatten().map(|field| {
        let ty = &field.ty;
        quote_spanned!(ty.span()=> #ty: ::catga::__codec::Shape)
    });
    quote! {
        const _: () = {
            #[allow(dead_code, trivial_bounds)]
            struct __CatgaAllowed where #(#bounds),*;
        };
    }
}

/// The field lists of a struct (one) or an enum (one for each variant).
fn all_fields(item: &DeriveInput) -> Vec<&Fields> {
    match &item.data {
        Data::Struct(data) => vec![&data.fields],
        Data::Enum(data) => data.variants.iter().map(|variant| &variant.fields).collect(),
        Data::Union(_) => Vec::new(),
    }
}

/// Name, index in this process, and the way back from the archived type.
fn message(ident: &Ident, name: &str, version: u16) -> TokenStream {
    // By its name and not as `Archived<#ident>`: implementing a trait for a projection overlaps with every
    // other.
    let archived = format_ident!("Archived{}", ident.unraw(), span = ident.span());
    quote! {
        // SAFETY: the cell is declared in the function, which is not generic, so it belongs to this type
        // alone; the check is rkyv's.
        unsafe impl ::catga::__codec::Message for #ident {
            const NAME: &'static str = #name;
            const VERSION: u16 = #version;

            #[inline]
            fn type_index() -> ::catga::__codec::TypeIndex {
                static CELL: ::catga::__codec::TypeCell = ::catga::__codec::TypeCell::new();
                CELL.get()
            }

            #[inline]
            fn check(payload: &[u8]) -> ::core::option::Option<&Self::Archived> {
                ::catga::__codec::check::<Self>(payload)
            }

            fn deserialize(archived: &Self::Archived) -> Self {
                ::catga::__codec::deserialize::<Self>(archived)
            }
        }

        impl ::catga::__codec::ArchivedMessage for #archived {
            type Message = #ident;
        }
    }
}

fn role(item: &DeriveInput, options: &Options) -> TokenStream {
    let ident = &item.ident;
    let key = match &options.key {
        None => quote! {
            const KEY: ::core::option::Option<&'static str> = ::core::option::Option::None;

            #[inline]
            fn key(&self) -> u64 {
                0
            }
        },
        Some(key) => {
            let name = member_name(key);
            let field_type = match &item.data {
                Data::Struct(data) => {
                    data.fields.iter().zip(data.fields.members()).find(|(_, member)| member == key)
                }
                _ => None,
            };
            let field_type = field_type.map(|(field, _)| &field.ty);
            // Spanned at the option, so that a type that cannot be a key is reported there.
            let hash = quote_spanned!(key.span()=> <#field_type as ::catga::__codec::Key>::hash);
            quote! {
                const KEY: ::core::option::Option<&'static str> = ::core::option::Option::Some(#name);

                #[inline]
                fn key(&self) -> u64 {
                    #hash(&self.#key)
                }
            }
        }
    };
    match options.role {
        Role::Message => TokenStream::new(),
        Role::Event => quote!(impl ::catga::__codec::Event for #ident { #key }),
        Role::Request => {
            let reply = options.reply.as_ref().map_or_else(|| quote!(()), |reply| quote!(#reply));
            let error = options
                .error
                .as_ref()
                .map_or_else(|| quote!(::catga::__codec::Fault), |error| quote!(#error));
            quote! {
                impl ::catga::__codec::Request for #ident {
                    type Reply = #reply;
                    type Error = #error;
                    #key
                }
            }
        }
    }
}

fn shape(item: &DeriveInput, name: &str, options: &Options) -> Result<TokenStream> {
    let (ident, version) = (&item.ident, options.version);
    let all_fields = all_fields(item);
    let (kind, fields, offsets) = match &item.data {
        Data::Enum(data) => ("enum", variants(data)?, quote!(&[])),
        _ => {
            let fields: Vec<_> = all_fields.iter().map(|fields| field_list(fields)).collect::<Result<_>>()?;
            ("struct", quote!(#(#fields)*), offsets(&all_fields))
        }
    };
    let tags = tags(item);
    Ok(quote! {
        #tags

        const fn __catga_fingerprint(names: ::catga::__codec::Names) -> u64 {
            type __CatgaArchived = ::catga::__codec::Archived<#ident>;
            ::catga::__codec::layout::fingerprint::<__CatgaArchived>(
                #kind,
                #name,
                #version,
                <#ident as ::catga::__codec::Shape>::FIELDS,
                #offsets,
                names,
            )
        }

        impl ::catga::__codec::Shape for #ident {
            const FIELDS: &'static [::catga::__codec::Field] = &[#fields];
            const DEPTH: u32 = 1 + ::catga::__codec::layout::deepest(<Self as ::catga::__codec::Shape>::FIELDS);
            const FINGERPRINT: u64 = __catga_fingerprint(::catga::__codec::Names::Present);
            const FORMER: u64 = __catga_fingerprint(::catga::__codec::Names::Former);
        }
    })
}

/// `field::<Type>("name", "former name"), ..` for the fields of a struct or variant.
fn field_list(fields: &Fields) -> Result<TokenStream> {
    let fields = named(fields).map(|(name, field)| {
        let (ty, former) = (&field.ty, was::former(&name, &field.attrs)?);
        Ok(quote_spanned!(ty.span()=> ::catga::__codec::layout::field::<#ty>(#name, #former)))
    });
    let fields: Vec<_> = fields.collect::<Result<_>>()?;
    Ok(quote!(#(#fields,)*))
}

fn variants(data: &DataEnum) -> Result<TokenStream> {
    let variants = data.variants.iter().map(|variant| {
        let (ident, name) = (&variant.ident, variant.ident.unraw().to_string());
        let (former, fields) = (was::former(&name, &variant.attrs)?, field_list(&variant.fields)?);
        Ok(quote!(::catga::__codec::layout::variant(#name, #former, __CatgaTag::#ident as u8, &[#fields])))
    });
    let variants: Vec<_> = variants.collect::<Result<_>>()?;
    Ok(quote!(#(#variants,)*))
}

/// The tags of an enum's variants as the archive numbers them: the written ones, and one more than the last
/// otherwise.
fn tags(item: &DeriveInput) -> TokenStream {
    let Data::Enum(data) = &item.data else { return TokenStream::new() };
    let tags = data.variants.iter().map(|variant| {
        let ident = &variant.ident;
        match &variant.discriminant {
            Some((_, value)) => quote!(#ident = #value),
            None => quote!(#ident),
        }
    });
    quote! {
        #[repr(u8)]
        enum __CatgaTag { #(#tags),* }
    }
}

fn offsets(all_fields: &[&Fields]) -> TokenStream {
    let members = all_fields.iter().flat_map(|fields| fields.members());
    quote!(&[#(::core::mem::offset_of!(__CatgaArchived, #members)),*])
}

/// What is only known once all constants are: forces them where the type is defined, so that the error is
/// there, too.
fn limits(ident: &Ident) -> TokenStream {
    let too_deep = format!(
        "`{ident}` nests deeper than the 16 levels a message may have (NESTING_MAX); flatten it, or send its parts as messages of their own"
    );
    let disagree = "catga-derive and catga-codec are of different versions";
    let fingerprint = format_ident!("_FINGERPRINT");
    quote! {
        const #fingerprint: u64 = <#ident as ::catga::__codec::Shape>::FINGERPRINT;
        const _: () = assert!(::catga::__codec::layout::shallow_enough::<#ident>(), #too_deep);
        const _: () = assert!(::catga::__codec::limits::MESSAGE_NAME_MAX_BYTES == #NAME_MAX_BYTES, #disagree);
    }
}
