//! Which types may travel, and the fingerprint of their archived layout.
//!
//! The list is an allow-list: integers, floats, `bool`, `char`, `String`, `Option`, `Box`, `Vec`, fixed
//! arrays, `()`, and structs and enums made of them by the macros. Their archives are trees with relative
//! pointers that only point backwards, so checking them is linear in the bytes. What shares (`Rc`), hashes
//! (`HashMap`) or depends on the machine (`usize`) has no `Shape`.
//!
//! A fingerprint covers names, nested fingerprints, size, alignment and offsets of the *archived* types:
//! rkyv's format features unify across a user's build, so the same source can give two layouts, and only
//! equal fingerprints may talk. Nesting is bounded at compile time, so no bytes can make a reader recurse
//! deeper than that; recursive types do not compile.
//!
//! A rename changes no archive, only the name in the fingerprint. So a shape has a second fingerprint, in
//! which each field and variant that says `#[was("..")]` has its former name, at every level below it. All
//! else in it is as in the first, so either one claims: laid out exactly so.

use rkyv::Archive;

use crate::hash::{combine, hash64};

/// A field of a shape, or a variant of an enum: what two nodes compare to explain why their fingerprints
/// differ.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The name of the field; positions (`0`, `1`, …) in tuple structs.
    pub name: &'static str,
    /// The name that it had before, as `#[was("..")]` tells; equal to `name` if it was not renamed.
    pub was: &'static str,
    /// The fingerprint of its type.
    pub fingerprint: u64,
    /// The fingerprint of its type by former names.
    pub former: u64,
    /// How deep its type nests.
    pub depth: u32,
    /// The fields inside it.
    pub fields: &'static [Field],
}

impl Field {
    /// Its name among these names.
    #[must_use]
    pub const fn name_in(&self, names: Names) -> &'static str {
        match names {
            Names::Present => self.name,
            Names::Former => self.was,
        }
    }

    /// The fingerprint of its type by these names.
    #[must_use]
    pub const fn fingerprint_in(&self, names: Names) -> u64 {
        match names {
            Names::Present => self.fingerprint,
            Names::Former => self.former,
        }
    }
}

/// By which names of fields and variants a fingerprint is computed. Nothing else in it depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Those that the source has.
    Present,
    /// Where `#[was("..")]` tells a former name, that one.
    Former,
}

/// A type that may travel between nodes; see the module for the list. The macros implement it for structs and
/// enums.
#[diagnostic::on_unimplemented(
    message = "`{Self}` may not cross nodes",
    label = "not allowed in a message",
    note = "if it is your struct or enum, put `#[message]` on it",
    note = "else use integers of fixed width (`u32`, `u64`, ..), floats, `bool`, `char`, `String`, `Option`, `Box`, `Vec`, `[T; N]`; for a map a `Vec` of entries"
)]
pub trait Shape: Archive {
    /// Hash of the whole archived layout.
    const FINGERPRINT: u64;
    /// Hash of the same layout by the former names of its fields and variants; equal to
    /// [`FINGERPRINT`](Self::FINGERPRINT) where nothing in it was renamed.
    const FORMER: u64 = Self::FINGERPRINT;
    /// Levels of nesting: 0 for a plain value.
    const DEPTH: u32;
    /// The fields, if there are any; containers show those of what they contain.
    const FIELDS: &'static [Field] = &[];
}

/// The arithmetic of fingerprints, for the macros.
#[doc(hidden)]
pub mod layout {
    use super::{Field, Names, Shape, combine, hash64};
    use crate::limits::NESTING_MAX;

    /// The depth of the deepest field.
    #[must_use]
    pub const fn deepest(fields: &[Field]) -> u32 {
        let mut deepest = 0;
        let mut i = 0;
        while i < fields.len() {
            if fields[i].depth > deepest {
                deepest = fields[i].depth;
            }
            i += 1;
        }
        deepest
    }

    /// Whether a shape nests no deeper than a message may.
    #[must_use]
    pub const fn shallow_enough<T: Shape>() -> bool {
        T::DEPTH <= NESTING_MAX
    }

    /// The field of type `T` with this name, which was called `was` before.
    #[must_use]
    pub const fn field<T: Shape>(name: &'static str, was: &'static str) -> Field {
        let (fingerprint, former) = (T::FINGERPRINT, T::FORMER);
        Field { name, was, fingerprint, former, depth: T::DEPTH, fields: T::FIELDS }
    }

    /// The variant of an enum with this name, former name, tag and fields.
    #[must_use]
    pub const fn variant(name: &'static str, was: &'static str, tag: u8, fields: &'static [Field]) -> Field {
        let fingerprint = combine(tag as u64, fold(hash64(b"variant"), fields, Names::Present));
        let former = combine(tag as u64, fold(hash64(b"variant"), fields, Names::Former));
        Field { name, was, fingerprint, former, depth: deepest(fields), fields }
    }

    /// The fingerprint by these names of the message `T`'s struct or enum with these fields; `offsets` are those of the
    /// archived struct (an archived enum has none that can be named, but `repr(u8)` fixes them given its
    /// variants).
    #[must_use]
    pub const fn fingerprint<A>(
        kind: &str,
        name: &str,
        version: u16,
        fields: &[Field],
        offsets: &[usize],
        names: Names,
    ) -> u64 {
        let mut print = combine(hash64(kind.as_bytes()), hash64(name.as_bytes()));
        print = combine(print, version as u64);
        print = combine(print, size_and_align::<A>());
        print = fold(print, fields, names);
        let mut i = 0;
        while i < offsets.len() {
            print = combine(print, offsets[i] as u64);
            i += 1;
        }
        print
    }

    /// The fingerprint of a plain value with this name.
    #[must_use]
    pub const fn plain<A>(name: &str) -> u64 {
        combine(hash64(name.as_bytes()), size_and_align::<A>())
    }

    /// The fingerprint of a container with this name around something.
    #[must_use]
    pub const fn container<A>(name: &str, inner: u64) -> u64 {
        combine(plain::<A>(name), inner)
    }

    const fn size_and_align<A>() -> u64 {
        combine(size_of::<A>() as u64, align_of::<A>() as u64)
    }

    const fn fold(mut print: u64, fields: &[Field], names: Names) -> u64 {
        print = combine(print, fields.len() as u64);
        let mut i = 0;
        while i < fields.len() {
            let (name, inner) = (fields[i].name_in(names), fields[i].fingerprint_in(names));
            print = combine(print, combine(hash64(name.as_bytes()), inner));
            i += 1;
        }
        print
    }
}

macro_rules! plain_shapes {
    ($($type:ty)*) => {$(
        impl Shape for $type {
            const FINGERPRINT: u64 = layout::plain::<Self::Archived>(stringify!($type));
            const DEPTH: u32 = 0;
        }
    )*};
}

plain_shapes!(() bool char u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64 String);

macro_rules! container_shapes {
    ($($type:ident)*) => {$(
        impl<T: Shape> Shape for $type<T> {
            const FINGERPRINT: u64 = layout::container::<Self::Archived>(stringify!($type), T::FINGERPRINT);
            const FORMER: u64 = layout::container::<Self::Archived>(stringify!($type), T::FORMER);
            const DEPTH: u32 = 1 + T::DEPTH;
            const FIELDS: &'static [Field] = T::FIELDS;
        }
    )*};
}

container_shapes!(Option Box);

impl<T: Shape> Shape for Vec<T> {
    const FINGERPRINT: u64 = {
        // Eight foreign bytes could otherwise claim four billion elements of no size, and a reader would
        // visit each of them.
        assert!(
            size_of::<T::Archived>() > 0,
            "a `Vec` of a type without size may not cross nodes; send its length as a `u32`"
        );
        layout::container::<Self::Archived>("Vec", T::FINGERPRINT)
    };
    const FORMER: u64 = layout::container::<Self::Archived>("Vec", T::FORMER);
    const DEPTH: u32 = 1 + T::DEPTH;
    const FIELDS: &'static [Field] = T::FIELDS;
}

impl<T: Shape, const N: usize> Shape for [T; N] {
    const FINGERPRINT: u64 = combine(layout::container::<Self::Archived>("array", T::FINGERPRINT), N as u64);
    const FORMER: u64 = combine(layout::container::<Self::Archived>("array", T::FORMER), N as u64);
    const DEPTH: u32 = 1 + T::DEPTH;
    const FIELDS: &'static [Field] = T::FIELDS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_shapes_have_different_fingerprints() {
        let mut prints = vec![
            <u32>::FINGERPRINT,
            <i32>::FINGERPRINT,
            <f32>::FINGERPRINT,
            <u64>::FINGERPRINT,
            <String>::FINGERPRINT,
            <Vec<u8>>::FINGERPRINT,
            <Vec<u32>>::FINGERPRINT,
            <Option<u32>>::FINGERPRINT,
            <Box<u32>>::FINGERPRINT,
            <[u32; 1]>::FINGERPRINT,
            <[u32; 2]>::FINGERPRINT,
            <()>::FINGERPRINT,
            <Vec<Option<u32>>>::FINGERPRINT,
            <Option<Vec<u32>>>::FINGERPRINT,
        ];
        prints.sort_unstable();
        let all = prints.len();
        prints.dedup();
        assert_eq!(prints.len(), all);
    }

    #[test]
    fn depth_counts_levels_around_a_plain_value() {
        assert_eq!(<u8>::DEPTH, 0);
        assert_eq!(<Vec<Option<[u8; 2]>>>::DEPTH, 3);
    }
}
