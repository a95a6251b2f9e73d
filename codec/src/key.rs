//! What a message may be keyed by: values that hash the same on every node, in every build.
//!
//! `std::hash::Hash` promises none of that (a `usize` prefix, a random state), hence a trait of its own.
//! Integers hash by value and not by width, so that widening a key from `u32` to `u64` moves no key to
//! another owner.

use crate::hash::{combine, hash_bytes, hash_u64};

/// A value that places a message: the node and the shard that own the key handle it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a message",
    label = "this field is named by `key = ..`",
    note = "use an integer, `bool`, `char`, `String` or `[u8; N]` as the key: they hash the same on every node"
)]
pub trait Key {
    /// The hash of the key: the same on every node.
    fn hash(&self) -> u64;
}

macro_rules! integer_keys {
    ($($int:ty as $wide:ty),* $(,)?) => {$(
        impl Key for $int {
            #[inline]
            fn hash(&self) -> u64 {
                // Sign extension first: `-1_i8` and `-1_i64` are one key.
                hash_u64(<$wide>::from(*self) as u64)
            }
        }
    )*};
}

integer_keys!(u8 as u64, u16 as u64, u32 as u64, u64 as u64, i8 as i64, i16 as i64, i32 as i64, i64 as i64);
integer_keys!(bool as u64, char as u64);

impl Key for u128 {
    #[inline]
    fn hash(&self) -> u64 {
        match u64::try_from(*self) {
            Ok(narrow) => narrow.hash(),
            Err(_) => combine(*self as u64, (*self >> 64) as u64),
        }
    }
}

impl Key for i128 {
    #[inline]
    fn hash(&self) -> u64 {
        match i64::try_from(*self) {
            Ok(narrow) => narrow.hash(),
            Err(_) => combine(*self as u64, (*self >> 64) as u64),
        }
    }
}

impl Key for str {
    #[inline]
    fn hash(&self) -> u64 {
        hash_bytes(self.as_bytes())
    }
}

impl Key for String {
    #[inline]
    fn hash(&self) -> u64 {
        self.as_str().hash()
    }
}

impl<const N: usize> Key for [u8; N] {
    #[inline]
    fn hash(&self) -> u64 {
        hash_bytes(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_an_integer_does_not_move_its_key() {
        assert_eq!(7_u8.hash(), 7_u64.hash());
        assert_eq!(7_u16.hash(), 7_u128.hash());
        assert_eq!((-3_i8).hash(), (-3_i64).hash());
        assert_eq!((-3_i32).hash(), (-3_i128).hash());
        assert_ne!(u128::MAX.hash(), u64::MAX.hash());
        assert_ne!(i128::MIN.hash(), i128::MAX.hash());
    }

    #[test]
    fn text_and_bytes_hash_alike() {
        assert_eq!("abc".hash(), String::from("abc").hash());
        assert_eq!("abc".hash(), b"abc".hash());
    }

    #[test]
    fn owners_of_keys_never_change() {
        assert_eq!(7_u64.hash(), hash_u64(7));
        assert_eq!(true.hash(), 1_u8.hash());
        assert_eq!('a'.hash(), 97_u32.hash());
    }
}
