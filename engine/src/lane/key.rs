//! The key of a cluster: what its nodes have and nobody else.
//!
//! It never travels and is never shown. Of the bytes that were given nothing is kept but the state of HMAC-SHA256 that has
//! taken them, which is all that [`proof`](super::proof) needs.
//!
//! A cluster without a key runs the same handshake, with an empty key in its place: anyone can compute those proofs, and
//! still they show that both sides have seen the same greetings.

use std::fmt;

use hmac::{Hmac, KeyInit};
use sha2::Sha256;

/// The fewest bytes of a key. Fewer can be guessed, by trying them on one recorded handshake.
pub(crate) const KEY_BYTES_MIN: usize = 16;
/// The most bytes of a key.
pub(crate) const KEY_BYTES_MAX: usize = 1024;

/// The key of a cluster, or none.
#[derive(Clone)]
pub(crate) struct ClusterKey {
    mac: Hmac<Sha256>,
    is_set: bool,
}

/// A key is too short or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster key of {bytes} bytes")]
pub(crate) struct KeyLength {
    /// How long it is.
    pub(crate) bytes: usize,
}

impl ClusterKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`KeyLength`]: fewer than [`KEY_BYTES_MIN`] or more than [`KEY_BYTES_MAX`].
    pub(crate) fn new(key: &[u8]) -> Result<Self, KeyLength> {
        let length = KeyLength { bytes: key.len() };
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(length);
        }
        let mac = Hmac::new_from_slice(key).map_err(|_| length)?;
        Ok(Self { mac, is_set: true })
    }

    /// No key.
    pub(crate) fn none() -> Self {
        // HMAC fills a short key up with zeros, so that a block of them is the empty key.
        Self { mac: Hmac::new(&Default::default()), is_set: false }
    }

    /// Whether there is a key.
    pub(crate) fn is_set(&self) -> bool {
        self.is_set
    }

    /// The state that has taken the key and nothing else.
    pub(super) fn mac(&self) -> Hmac<Sha256> {
        self.mac.clone()
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set { "ClusterKey(hidden)" } else { "ClusterKey(none)" })
    }
}
