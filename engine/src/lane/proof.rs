//! How two nodes prove to each other that they have the cluster's key.
//!
//! ```text
//!   dialer                                     acceptor
//!     ── Hello: greeting with a nonce ───────▶
//!     ◀── Welcome: greeting with a nonce, W ──   W = HMAC(key, "catga lane welcome v1", hello, welcome)
//!     ── Proof: P, frames right behind ──────▶   P = HMAC(key, "catga lane proof v1", hello, welcome, W)
//! ```
//!
//! Each text under the HMAC is the payload as it was on the wire, behind its length, so that no two handshakes read alike.
//! What follows from that:
//!
//! - Both nonces are in both proofs and neither has been used before: a recorded proof fits no other handshake.
//! - The labels differ, so that a proof cannot be sent back to whoever made it, on this connection or on another.
//! - Every byte of both greetings is covered: who alters one on its way, whatever it says, gets no open lane.
//! - A proof says nothing of the key but to who can guess it; hence the least length of a key.
//!
//! It is the handshake that is proven, not what comes after it: who can alter the bytes between two nodes can do so once
//! they are greeted, and read them all along. Against that helps a network that is closed or encrypted.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::key::ClusterKey;

/// The size of a proof.
pub(crate) const PROOF_BYTES: usize = 32;

const WELCOME_LABEL: &[u8] = b"catga lane welcome v1";
const PROOF_LABEL: &[u8] = b"catga lane proof v1";

/// A handshake up to the Hello.
pub(crate) struct Transcript {
    welcome: Hmac<Sha256>,
    proof: Hmac<Sha256>,
}

/// The proof of one side: to be sent, or to be compared with.
pub(crate) struct Proof(Hmac<Sha256>);

impl Transcript {
    /// After a Hello with this payload.
    pub(crate) fn new(key: &ClusterKey, hello: &[u8]) -> Self {
        let begun = |label: &[u8]| {
            let mut mac = key.mac();
            mac.update(label);
            take(&mut mac, hello);
            mac
        };
        Self { welcome: begun(WELCOME_LABEL), proof: begun(PROOF_LABEL) }
    }

    /// The acceptor's proof, which follows this greeting in the Welcome.
    pub(crate) fn of_acceptor(&self, greeting: &[u8]) -> Proof {
        let mut mac = self.welcome.clone();
        take(&mut mac, greeting);
        Proof(mac)
    }

    /// The dialer's proof, after a Welcome with this payload: the greeting and the acceptor's proof.
    pub(crate) fn of_dialer(&self, greeting: &[u8], welcomed: &[u8; PROOF_BYTES]) -> Proof {
        let mut mac = self.proof.clone();
        take(&mut mac, greeting);
        take(&mut mac, welcomed);
        Proof(mac)
    }
}

impl Proof {
    /// What is sent.
    pub(crate) fn bytes(self) -> [u8; PROOF_BYTES] {
        self.0.finalize().into_bytes().into()
    }

    /// Whether these bytes are the proof. Takes the same time for each wrong one.
    pub(crate) fn is(self, bytes: &[u8; PROOF_BYTES]) -> bool {
        self.0.verify_slice(bytes).is_ok()
    }
}

fn take(mac: &mut Hmac<Sha256>, text: &[u8]) {
    mac.update(&(text.len() as u64).to_le_bytes());
    mac.update(text);
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transcript(hidden)")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(hidden)")
    }
}
