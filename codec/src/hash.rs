//! The one hash of the engine: xxh3 with 64 bits, seed 0.
//!
//! It names messages, fingerprints layouts and places keys, so its values travel between nodes and must never
//! change: the golden tests below hold them. It is no defence against an adversary who chooses keys; nothing
//! here needs one. The functions are `const`, because ids and fingerprints are constants of the types they
//! belong to.

use xxhash_rust::const_xxh3;

/// The hash of some bytes, usable in constants. For long bytes at run time [`hash_bytes`] is faster.
#[must_use]
pub const fn hash64(bytes: &[u8]) -> u64 {
    const_xxh3::xxh3_64(bytes)
}

/// The same value as [`hash64`], computed with the widest instructions at hand.
#[must_use]
#[inline]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The hash of an integer: of its eight little-endian bytes.
#[must_use]
#[inline]
pub const fn hash_u64(value: u64) -> u64 {
    hash64(&value.to_le_bytes())
}

/// Two hashes made one; `combine(a, b)` and `combine(b, a)` differ.
#[must_use]
#[inline]
pub const fn combine(a: u64, b: u64) -> u64 {
    let [a, b] = [a.to_le_bytes(), b.to_le_bytes()];
    hash64(&[a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_nodes_exchange_never_change() {
        assert_eq!(hash64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(hash64(b"place_order"), hash_bytes(b"place_order"));
        assert_eq!(hash_u64(7), hash64(&[7, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn constant_and_run_time_hashes_agree_at_every_length() {
        let bytes: Vec<u8> = (0..600_u32).map(|i| (i * 31) as u8).collect();
        for length in 0..bytes.len() {
            assert_eq!(hash64(&bytes[..length]), hash_bytes(&bytes[..length]), "length {length}");
        }
    }

    #[test]
    fn the_order_of_combined_hashes_counts() {
        assert_ne!(combine(1, 2), combine(2, 1));
    }
}
