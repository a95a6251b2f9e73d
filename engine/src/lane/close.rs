//! Why a lane ends, and what has moved on it.
//!
//! A lane ends for exactly one [`CloseReason`]. Each has a number that never changes (it travels in the `code` of the
//! Close frame), a short name to look for in the log, and a text that says what happened and what to do about it. A node that
//! does not know a number yet takes it for [`CloseReason::Unrecognized`].

use std::fmt;

/// Why a lane ended. The numbers are part of the protocol: new reasons get new numbers at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub(crate) enum CloseReason {
    /// The lane is not needed any more.
    Done = 1,
    /// The node stops.
    Stopping = 2,
    /// The peer already has as many lanes to this node as it may have.
    Surplus = 3,
    /// A newer incarnation of the same node has taken its place.
    Superseded = 4,
    /// The connection ended without a Close frame.
    Disconnected = 5,
    /// Nothing was heard for [`SILENCE`](super::pulse::SILENCE).
    Silent = 6,
    /// The greetings and the proof were not done within [`GREETING_TIMEOUT`](super::pulse::GREETING_TIMEOUT).
    GreetingTimeout = 7,
    /// The other side does not read what is sent to it.
    SlowReader = 8,
    /// A greeting that cannot be read, or says what no node would say.
    MalformedGreeting = 9,
    /// No protocol version in common.
    VersionMismatch = 10,
    /// The two nodes belong to different clusters.
    ClusterMismatch = 11,
    /// A node has dialed itself.
    ConnectedToSelf = 12,
    /// Another node than the expected one answered.
    UnexpectedPeer = 13,
    /// The dialer asked for a shard that the node does not have.
    NoSuchShard = 14,
    /// A frame came before the greetings and the proof were done.
    FrameBeforeGreeting = 15,
    /// A greeting, or a proof, came on a lane that has had it.
    SecondGreeting = 16,
    /// The dialer welcomed, or the acceptor said hello.
    WrongRole = 17,
    /// A frame whose header contradicts itself.
    MalformedFrame = 18,
    /// A frame of a kind that this node does not know.
    UnknownKind = 19,
    /// A frame with a flag that is unknown, or has no meaning between nodes.
    UnknownFlag = 20,
    /// A frame longer than the agreed limit.
    FrameTooLong = 21,
    /// More unanswered calls than were granted.
    TooManyCalls = 22,
    /// An answer, while no call was unanswered.
    UnexpectedAnswer = 23,
    /// The peer gave a reason that this node does not know.
    Unrecognized = 24,
    /// A proof of the cluster's key that does not fit the greetings.
    WrongKey = 25,
    /// One side has a cluster key, and the other has none.
    KeyMissing = 26,
}

impl CloseReason {
    /// Whether one side turned the other away, or broke a rule of the protocol; else lanes end like this in good order,
    /// or by bad luck.
    #[must_use]
    pub(crate) const fn breaks_a_rule(self) -> bool {
        !matches!(
            self,
            Self::Done
                | Self::Stopping
                | Self::Surplus
                | Self::Superseded
                | Self::Disconnected
                | Self::Silent
        )
    }

    /// Whether a side did not prove that it has the cluster's key.
    #[must_use]
    pub(crate) const fn is_unproven(self) -> bool {
        matches!(self, Self::WrongKey | Self::KeyMissing)
    }

    /// Every reason, in the order of their numbers, from 1 on.
    pub(crate) const ALL: [Self; 26] = [
        Self::Done,
        Self::Stopping,
        Self::Surplus,
        Self::Superseded,
        Self::Disconnected,
        Self::Silent,
        Self::GreetingTimeout,
        Self::SlowReader,
        Self::MalformedGreeting,
        Self::VersionMismatch,
        Self::ClusterMismatch,
        Self::ConnectedToSelf,
        Self::UnexpectedPeer,
        Self::NoSuchShard,
        Self::FrameBeforeGreeting,
        Self::SecondGreeting,
        Self::WrongRole,
        Self::MalformedFrame,
        Self::UnknownKind,
        Self::UnknownFlag,
        Self::FrameTooLong,
        Self::TooManyCalls,
        Self::UnexpectedAnswer,
        Self::Unrecognized,
        Self::WrongKey,
        Self::KeyMissing,
    ];

    /// The number that travels.
    #[must_use]
    pub(crate) const fn code(self) -> u16 {
        self as u16
    }

    /// The reason of a number that came from a peer.
    #[must_use]
    pub(crate) fn from_code(code: u16) -> Self {
        match Self::ALL.get(usize::from(code).wrapping_sub(1)) {
            Some(reason) => *reason,
            None => Self::Unrecognized,
        }
    }

    /// A stable short name, for the log.
    #[must_use]
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopping => "stopping",
            Self::Surplus => "surplus",
            Self::Superseded => "superseded",
            Self::Disconnected => "disconnected",
            Self::Silent => "silent",
            Self::GreetingTimeout => "greeting_timeout",
            Self::SlowReader => "slow_reader",
            Self::MalformedGreeting => "malformed_greeting",
            Self::VersionMismatch => "version_mismatch",
            Self::ClusterMismatch => "cluster_mismatch",
            Self::ConnectedToSelf => "connected_to_self",
            Self::UnexpectedPeer => "unexpected_peer",
            Self::NoSuchShard => "no_such_shard",
            Self::FrameBeforeGreeting => "frame_before_greeting",
            Self::SecondGreeting => "second_greeting",
            Self::WrongRole => "wrong_role",
            Self::MalformedFrame => "malformed_frame",
            Self::UnknownKind => "unknown_kind",
            Self::UnknownFlag => "unknown_flag",
            Self::FrameTooLong => "frame_too_long",
            Self::TooManyCalls => "too_many_calls",
            Self::UnexpectedAnswer => "unexpected_answer",
            Self::Unrecognized => "unrecognized",
            Self::WrongKey => "wrong_key",
            Self::KeyMissing => "key_missing",
        }
    }
}

// `from_code` finds each by its number.
const _: () = {
    let mut place = 0;
    while place < CloseReason::ALL.len() {
        assert!(CloseReason::ALL[place].code() as usize == place + 1);
        place += 1;
    }
};

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "the lane is not needed any more; nothing to do",
            Self::Stopping => "the node stops; its calls go to other nodes until it is back",
            Self::Surplus => "there are enough lanes between these nodes; calls take one of those",
            Self::Superseded => "a newer process has taken this node's id; stop the old one if it still runs",
            Self::Disconnected => {
                "the connection ended without a word; see whether the peer's process died or the network dropped it"
            }
            Self::Silent => {
                "nothing was heard for a second, not even a heartbeat; see whether the peer's shard is stuck in a \
                 handler or the network is cut"
            }
            Self::GreetingTimeout => {
                "the greeting was not finished in time; see whether the address belongs to a Catga node, and whether \
                 that node is overloaded"
            }
            Self::SlowReader => {
                "the other side does not read what is sent to it; see whether its shard is stuck, or ask it for \
                 smaller or fewer answers"
            }
            Self::MalformedGreeting => "the greeting cannot be read; see whether the address belongs to a Catga node",
            Self::VersionMismatch => "the nodes have no protocol version in common; update the older one",
            Self::ClusterMismatch => "the nodes belong to different clusters; give both the same cluster name",
            Self::ConnectedToSelf => {
                "a node has dialed its own id; give each node an id of its own, and check the address it announces"
            }
            Self::UnexpectedPeer => {
                "another node answered at this address than the one that announced it; the next view will tell"
            }
            Self::NoSuchShard => "the node has fewer shards than the dialer believes; the next view will tell",
            Self::FrameBeforeGreeting => {
                "a frame came before the greeting; see whether a Catga node is on the other side"
            }
            Self::SecondGreeting => "a second greeting came; this is a defect of the node that sent it",
            Self::WrongRole => {
                "both sides dialed or both accepted; see whether a proxy joined two connections the wrong way round"
            }
            Self::MalformedFrame => {
                "a frame's header contradicts itself; see whether something between the nodes alters the bytes"
            }
            Self::UnknownKind => "a frame of an unknown kind came; update the older node",
            Self::UnknownFlag => "a frame came with a flag that has no meaning between nodes; update the older node",
            Self::FrameTooLong => {
                "a frame is longer than agreed; see whether the address belongs to a Catga node"
            }
            Self::TooManyCalls => {
                "more calls were sent than granted; this is a defect of the node that sent them"
            }
            Self::UnexpectedAnswer => {
                "an answer came without a call; this is a defect of the node that sent it"
            }
            Self::Unrecognized => "the peer gave a reason that this node does not know; update the older node",
            Self::WrongKey => {
                "the proof of the cluster key does not fit; give both nodes the same `.key(..)`, and if they have it, \
                 see whether something between them alters or repeats the bytes"
            }
            Self::KeyMissing => {
                "one of the two nodes has a cluster key and the other has none; give both the same `.key(..)`"
            }
        })
    }
}

/// Who decided that a lane ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Closer {
    /// This node.
    Here,
    /// The other one, in its Close frame.
    Peer,
}

/// How a lane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// Why.
    pub(crate) reason: CloseReason,
    /// Who said so.
    pub(crate) by: Closer,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Closer::Here => write!(f, "closed: {}", self.reason),
            Closer::Peer => write!(f, "closed by the peer: {}", self.reason),
        }
    }
}

/// What moved on a lane, and what did not: in the log when it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes that sockets took.
    pub(crate) sent_bytes: u64,
    /// Bytes of the frames that were stepped over.
    pub(crate) taken_bytes: u64,
    /// Heartbeats sent.
    pub(crate) heartbeats: u64,
    /// Frames not queued because the lane's buffer was full.
    pub(crate) full: u64,
    /// Calls not queued because the peer's credit was used up.
    pub(crate) no_credit: u64,
    /// Frames not queued because they are longer than agreed with the peer, or, of answers, than so many unsent ones let pass.
    pub(crate) too_long: u64,
    /// Requests, events and cancels that were queued but not sent when their lane ended.
    pub(crate) withdrawn: u64,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent_bytes, taken_bytes, heartbeats, full, no_credit, too_long, withdrawn } = self;
        write!(
            f,
            "{sent_bytes} bytes sent, {heartbeats} heartbeats among them, and {taken_bytes} taken; not queued: {full} for \
             want of room, {no_credit} of credit, {too_long} too long; {withdrawn} not sent when it ended"
        )
    }
}
