//! Who says what until a lane is open: Hello, Welcome, Proof.
//!
//! ```text
//!   dialer     hello() ── Hello ─▶ ─────────────────── Welcome fits: open ── Proof ─▶
//!   acceptor            Hello agreed on ── Welcome ─▶ ─────────────────────────────── Proof fits: open
//! ```
//!
//! The dialer may send frames right behind its Proof, so that opening takes one round trip. The acceptor opens by the Proof and
//! not before: until then nobody is at the other end who has shown to have the cluster's key, and nothing that comes from
//! there reaches the engine. What each side keeps meanwhile is small, whatever the size of the greetings: a state of
//! the HMAC, and the agreement.

use catga_codec::Kind;

use super::close::CloseReason;
use super::config::LaneConfig;
use super::greeting::Greeting;
use super::handshake::{Agreement, HandshakeError, Role, agree};
use super::proof::{PROOF_BYTES, Proof, Transcript};

/// A lane that is not open yet.
#[derive(Debug)]
pub(crate) struct Opening {
    config: LaneConfig,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The acceptor waits for the Hello.
    Listening,
    /// The dialer has said hello, and waits for the Welcome.
    Greeted(Transcript),
    /// The acceptor has welcomed, and waits for this proof.
    Welcomed { agreement: Box<Agreement>, expected: Proof },
}

/// What a frame of the peer leads to.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this as a Welcome, and wait for the proof.
    Welcome(Vec<u8>),
    /// The lane is open.
    Open {
        /// By these terms.
        agreement: Box<Agreement>,
        /// The dialer sends this first.
        proof: Option<[u8; PROOF_BYTES]>,
    },
}

impl Opening {
    /// Of an acceptor; of a dialer once it says [`hello`](Self::hello).
    pub(crate) fn new(mut config: LaneConfig) -> Self {
        config.greeting.keyed = config.key.is_set();
        Self { config, stage: Stage::Listening }
    }

    /// What the lane is made of.
    pub(crate) fn config(&self) -> &LaneConfig {
        &self.config
    }

    /// The payload of the Hello: this side is the dialer.
    ///
    /// # Errors
    /// The greeting is none that a peer would accept; see [`Greeting::encode`].
    pub(crate) fn hello(&mut self) -> Result<Vec<u8>, HandshakeError> {
        let payload = self.config.greeting.encode()?;
        self.stage = Stage::Greeted(Transcript::new(&self.config.key, &payload));
        Ok(payload)
    }

    /// Takes a frame of the peer, a Close excepted.
    ///
    /// # Errors
    /// Why the lane has to end. This is of no use any more then.
    pub(crate) fn take(&mut self, kind: Kind, payload: &[u8]) -> Result<Next, CloseReason> {
        let stage = std::mem::replace(&mut self.stage, Stage::Listening);
        let next = match (stage, kind) {
            (Stage::Listening, Kind::Hello) => self.welcome(payload),
            (Stage::Greeted(transcript), Kind::Welcome) => self.prove(&transcript, payload),
            (Stage::Welcomed { agreement, expected }, Kind::Proof) => open(agreement, expected, payload),
            (Stage::Welcomed { .. }, Kind::Hello) => return Err(CloseReason::SecondGreeting),
            (Stage::Greeted(_), Kind::Hello | Kind::Proof) | (_, Kind::Welcome) => {
                return Err(CloseReason::WrongRole);
            }
            _ => return Err(CloseReason::FrameBeforeGreeting),
        };
        next.map_err(|error| error.close_reason())
    }

    /// The acceptor's answer to a Hello.
    fn welcome(&mut self, hello: &[u8]) -> Result<Next, HandshakeError> {
        let agreement = self.agree(Role::Acceptor, hello)?;
        self.config.greeting.shard = agreement.shard;
        self.config.greeting.wanted_shard = agreement.peer_shard;
        let mut welcome = self.config.greeting.encode()?;
        let transcript = Transcript::new(&self.config.key, hello);
        let proof = transcript.of_acceptor(&welcome).bytes();
        let expected = transcript.of_dialer(&welcome, &proof);
        welcome.extend_from_slice(&proof);
        self.stage = Stage::Welcomed { agreement, expected };
        Ok(Next::Welcome(welcome))
    }

    /// The dialer's answer to a Welcome.
    fn prove(&self, transcript: &Transcript, welcome: &[u8]) -> Result<Next, HandshakeError> {
        let truncated = HandshakeError::Truncated { what: "the proof" };
        let (greeting, proof) = welcome.split_last_chunk().ok_or(truncated)?;
        let agreement = self.agree(Role::Dialer, greeting)?;
        if !transcript.of_acceptor(greeting).is(proof) {
            return Err(HandshakeError::WrongKey);
        }
        let proof = Some(transcript.of_dialer(greeting, proof).bytes());
        Ok(Next::Open { agreement, proof })
    }

    fn agree(&self, role: Role, greeting: &[u8]) -> Result<Box<Agreement>, HandshakeError> {
        let LaneConfig { greeting: ours, expected_peer, .. } = &self.config;
        let theirs = Greeting::decode(greeting)?;
        agree(role, ours, &theirs, expected_peer.as_ref()).map(Box::new)
    }
}

/// The acceptor's lane is open if this is the proof.
fn open(agreement: Box<Agreement>, expected: Proof, payload: &[u8]) -> Result<Next, HandshakeError> {
    let proof = payload.try_into().map_err(|_| HandshakeError::OutOfRange {
        what: "length of the proof",
        value: payload.len() as u64,
        range: "32 bytes",
    })?;
    if expected.is(proof) { Ok(Next::Open { agreement, proof: None }) } else { Err(HandshakeError::WrongKey) }
}
