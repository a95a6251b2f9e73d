//! What each side of a new lane says of itself, and its form on the wire.
//!
//! The payload of a Hello or Welcome is little-endian and written by hand, because it is read before anything is known
//! about the peer:
//!
//! ```text
//!   0 magic 8 | 8 version_min u16 | 10 version_max u16 | 12 shard u16 | 14 shards u16 | 16 wanted_shard u16 | 18 flags u16
//!  20 frame_bytes_max u32 | 24 calls_max u32 | 28 contracts u32 | 32 incarnation u64 | 40 nonce 16
//!  56 cluster: u16 + text | node: u16 + text | endpoint: u16 + text | extensions: u32 + bytes, skipped
//!     each contract: id u64, kind u8, serves u8, name: u16 + text, layouts u8
//!         each layout: fingerprint u64, fields u16
//!             each field: fingerprint u64, path: u16 + text
//! ```
//!
//! A contract has a layout for each fingerprint that the side accepts, all of the same bytes: by its present names first,
//! then by former ones. The message passes if the two sides have a fingerprint in common.
//!
//! Of the flags, 1 says that the node has a cluster key; others mean nothing yet. Behind the greeting of a Welcome comes
//! the acceptor's proof (see [`proof`](super::proof)).
//!
//! Versions never change the order or size of these; what is new goes into the extensions. Reading it cannot panic, and
//! allocates only in proportion to bytes that are there: each count is capped and checked against what is left.

use std::sync::Arc;

use catga_codec::limits::{
    CONTRACT_FIELDS_MAX, CONTRACT_LAYOUTS_MAX, FRAME_INLINE_BYTES, MESSAGE_NAME_MAX_BYTES,
};
use catga_codec::{Contract, ContractKind, FieldPrint, LayoutPrint, MessageId};
use catga_discovery::{Incarnation, NodeId};

use super::handshake::HandshakeError;

/// The one version of the protocol so far.
pub(crate) const PROTOCOL_VERSION: u16 = 1;
/// The largest payload of a Hello or Welcome.
pub(crate) const GREETING_BYTES_MAX: usize = 1024 * 1024;
/// The most contracts of a greeting.
pub(crate) const CONTRACTS_MAX: usize = 4096;
/// The most layouts of one contract.
pub(crate) const LAYOUTS_MAX: usize = CONTRACT_LAYOUTS_MAX;
/// The most fields listed of one layout.
pub(crate) const FIELDS_MAX: usize = CONTRACT_FIELDS_MAX;
/// The longest path of a field.
pub(crate) const PATH_BYTES_MAX: usize = 4096;
/// The longest name of a cluster.
pub(crate) const CLUSTER_NAME_BYTES_MAX: usize = 128;
/// The longest text of an endpoint.
pub(crate) const ENDPOINT_BYTES_MAX: usize = 256;
/// The most unanswered calls that a side may grant.
pub(crate) const CALLS_MAX: u32 = 1 << 20;

const MAGIC: [u8; 8] = *b"catga/ln";
/// The flag of a node that has a cluster key.
const KEYED: u16 = 1;
const CONTRACT_BYTES_MIN: usize = 13 + LAYOUT_BYTES_MIN;
const LAYOUT_BYTES_MIN: usize = 10;
const FIELD_BYTES_MIN: usize = 10;

// Both travel as a u16.
const _: () = assert!(FIELDS_MAX <= 65_535);
const _: () = assert!(PATH_BYTES_MAX <= 65_535);

/// What one side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The oldest protocol version it speaks.
    pub(crate) version_min: u16,
    /// The newest protocol version it speaks.
    pub(crate) version_max: u16,
    /// The name of its cluster.
    pub(crate) cluster: Arc<str>,
    /// Its id.
    pub(crate) node: NodeId,
    /// Which life of that id it is.
    pub(crate) incarnation: Incarnation,
    /// Its shard at this end of the lane. An acceptor takes the one the dialer wants.
    pub(crate) shard: u16,
    /// How many shards it has, at least 1.
    pub(crate) shards: u16,
    /// The shard it wants at the other end.
    pub(crate) wanted_shard: u16,
    /// The longest frame that it accepts, at least that of a frame in line.
    pub(crate) frame_bytes_max: u32,
    /// How many unanswered calls it accepts at once, at most [`CALLS_MAX`]; 0 if it serves nothing.
    pub(crate) calls_max: u32,
    /// Random bytes, fresh for each lane: they make each proof of the cluster's key good for one lane only.
    pub(crate) nonce: [u8; 16],
    /// Whether it has a cluster key.
    pub(crate) keyed: bool,
    /// Where it is reached, as text: an address with a port, or what else later versions know.
    pub(crate) endpoint: Arc<str>,
    /// The messages it knows.
    pub(crate) offers: Arc<[Offer]>,
}

/// One message that a side knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The message.
    pub(crate) id: MessageId,
    /// Its stable name.
    pub(crate) name: String,
    /// Whether it is a request or an event.
    pub(crate) kind: ContractKind,
    /// Whether the side has a handler for it, or only sends it.
    pub(crate) serves: bool,
    /// What the side accepts as its layout, each fingerprint once, at least one; with the fields, to say which one differs.
    pub(crate) layouts: Vec<LayoutPrint>,
}

impl Offer {
    /// What a greeting says of this contract.
    #[must_use]
    pub(crate) fn of(contract: &Contract, serves: bool) -> Self {
        let Contract { id, name, kind, .. } = *contract;
        Self { id, name: name.to_owned(), kind, serves, layouts: contract.layouts() }
    }
}

impl Greeting {
    /// The payload of a Hello or Welcome.
    ///
    /// # Errors
    /// [`HandshakeError::OutOfRange`], [`HandshakeError::Duplicate`], [`HandshakeError::Repeated`]: this greeting is not one that a peer would accept.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, HandshakeError> {
        self.check()?;
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(&MAGIC);
        let flags = if self.keyed { KEYED } else { 0 };
        for word in [self.version_min, self.version_max, self.shard, self.shards, self.wanted_shard, flags] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.frame_bytes_max, self.calls_max, self.offers.len() as u32] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.nonce);
        put_text(&mut out, &self.cluster);
        put_text(&mut out, self.node.as_str());
        put_text(&mut out, &self.endpoint);
        out.extend_from_slice(&0u32.to_le_bytes()); // no extensions yet
        for offer in self.offers.iter() {
            out.extend_from_slice(&offer.id.0.to_le_bytes());
            out.extend_from_slice(&[offer.kind as u8, u8::from(offer.serves)]);
            put_text(&mut out, &offer.name);
            out.push(offer.layouts.len() as u8);
            for layout in &offer.layouts {
                out.extend_from_slice(&layout.fingerprint.to_le_bytes());
                out.extend_from_slice(&(layout.fields.len() as u16).to_le_bytes());
                for field in &layout.fields {
                    out.extend_from_slice(&field.fingerprint.to_le_bytes());
                    put_text(&mut out, &field.path);
                }
            }
        }
        within(
            "size in bytes",
            out.len(),
            0,
            GREETING_BYTES_MAX,
            "at most 1 MiB; list fewer or smaller messages",
        )?;
        Ok(out)
    }

    /// Reads the payload of a Hello or Welcome.
    ///
    /// # Errors
    /// [`HandshakeError`]: these bytes are not a greeting, or say what no node would say.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, HandshakeError> {
        within("size in bytes", payload.len(), 0, GREETING_BYTES_MAX, "at most 1 MiB")?;
        let mut reader = Reader(payload);
        if reader.array("the magic word")? != MAGIC {
            return Err(HandshakeError::NotAGreeting);
        }
        let (version_min, version_max) = (reader.u16("versions")?, reader.u16("versions")?);
        let (shard, shards) = (reader.u16("shards")?, reader.u16("shards")?);
        let (wanted_shard, flags) = (reader.u16("shards")?, reader.u16("shards")?);
        let (frame_bytes_max, calls_max) = (reader.u32("limits")?, reader.u32("limits")?);
        let count = reader.u32("the number of contracts")? as usize;
        let incarnation = Incarnation(reader.u64("the incarnation")?);
        let nonce = reader.array("the nonce")?;
        let cluster = reader.text("cluster name", CLUSTER_NAME_BYTES_MAX)?.into();
        let node = NodeId::new(reader.text("node id", NodeId::BYTES_MAX)?)?;
        let endpoint = reader.text("endpoint", ENDPOINT_BYTES_MAX)?.into();
        let extension_bytes = reader.u32("the extensions")? as usize;
        reader.take(extension_bytes, "the extensions")?;
        let count = reader.counted("number of contracts", count, CONTRACTS_MAX, CONTRACT_BYTES_MIN)?;
        let mut offers = Vec::with_capacity(count);
        for _ in 0..count {
            offers.push(reader.offer()?);
        }
        if !reader.0.is_empty() {
            return Err(HandshakeError::NotAGreeting);
        }
        let greeting = Self {
            version_min,
            version_max,
            cluster,
            node,
            incarnation,
            shard,
            shards,
            wanted_shard,
            frame_bytes_max,
            calls_max,
            nonce,
            keyed: flags & KEYED != 0,
            endpoint,
            offers: offers.into(),
        };
        greeting.check()?;
        Ok(greeting)
    }

    /// What holds for each greeting that is sent or accepted.
    fn check(&self) -> Result<(), HandshakeError> {
        let Self { version_min, version_max, shard, shards, .. } = *self;
        within("oldest version", version_min.into(), 1, version_max.into(), "from 1 to the newest version")?;
        within("number of shards", shards.into(), 1, u16::MAX.into(), "at least 1")?;
        within("shard", shard.into(), 0, usize::from(shards) - 1, "less than the number of shards")?;
        let frame_bytes_max = self.frame_bytes_max as usize;
        within(
            "frame limit",
            frame_bytes_max,
            FRAME_INLINE_BYTES,
            usize::MAX,
            "at least that of a frame in line",
        )?;
        within("number of calls", self.calls_max as usize, 0, CALLS_MAX as usize, "at most 1,048,576")?;
        let cluster = self.cluster.len();
        within("length of the cluster name", cluster, 1, CLUSTER_NAME_BYTES_MAX, "from 1 to 128 bytes")?;
        within("length of the endpoint", self.endpoint.len(), 1, ENDPOINT_BYTES_MAX, "from 1 to 256 bytes")?;
        within("number of contracts", self.offers.len(), 0, CONTRACTS_MAX, "at most 4096")?;
        self.offers.iter().try_for_each(Offer::check)?;
        let mut ids: Vec<MessageId> = self.offers.iter().map(|offer| offer.id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(HandshakeError::Duplicate(pair[0])),
            None => Ok(()),
        }
    }
}

impl Offer {
    /// What holds for each contract of a greeting.
    fn check(&self) -> Result<(), HandshakeError> {
        let name = self.name.len();
        within("length of a message name", name, 1, MESSAGE_NAME_MAX_BYTES, "from 1 to 128 bytes")?;
        within("number of layouts of a message", self.layouts.len(), 1, LAYOUTS_MAX, "from 1 to 8")?;
        for (place, layout) in self.layouts.iter().enumerate() {
            if self.layouts[..place].iter().any(|other| other.fingerprint == layout.fingerprint) {
                return Err(HandshakeError::Repeated(self.id));
            }
            within("number of fields of a message", layout.fields.len(), 0, FIELDS_MAX, "at most 512")?;
            for field in &layout.fields {
                let path = field.path.len();
                within("length of a field's path", path, 0, PATH_BYTES_MAX, "at most 4096 bytes")?;
            }
        }
        Ok(())
    }
}

fn within(
    what: &'static str,
    value: usize,
    min: usize,
    max: usize,
    range: &'static str,
) -> Result<(), HandshakeError> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(HandshakeError::OutOfRange { what, value: value as u64, range })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The bytes that are still to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], HandshakeError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(HandshakeError::Truncated { what })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], HandshakeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(HandshakeError::Truncated { what })?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, HandshakeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, HandshakeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, HandshakeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &'static str, bytes_max: usize) -> Result<&'a str, HandshakeError> {
        let bytes = usize::from(self.u16(what)?);
        within(what, bytes, 0, bytes_max, "shorter")?;
        std::str::from_utf8(self.take(bytes, what)?).map_err(|_| HandshakeError::NotText { what })
    }

    /// A count that is within its limit and that the bytes left could hold.
    fn counted(
        &self,
        what: &'static str,
        count: usize,
        max: usize,
        bytes_min: usize,
    ) -> Result<usize, HandshakeError> {
        within(what, count, 0, max, "smaller")?;
        if count * bytes_min > self.0.len() { Err(HandshakeError::Truncated { what }) } else { Ok(count) }
    }

    fn offer(&mut self) -> Result<Offer, HandshakeError> {
        let id = MessageId(self.u64("a message id")?);
        let [kind, serves] = self.array("a contract")?;
        let kind = match kind {
            0 => ContractKind::Request,
            1 => ContractKind::Event,
            _ => {
                return Err(HandshakeError::OutOfRange {
                    what: "kind of a message",
                    value: kind.into(),
                    range: "0 or 1",
                });
            }
        };
        within("serving mark", serves.into(), 0, 1, "0 or 1")?;
        let name = self.text("message name", MESSAGE_NAME_MAX_BYTES)?.to_owned();
        let [count] = self.array("the number of layouts")?;
        let count = self.counted("number of layouts", count.into(), LAYOUTS_MAX, LAYOUT_BYTES_MIN)?;
        let mut layouts = Vec::with_capacity(count);
        for _ in 0..count {
            layouts.push(self.layout()?);
        }
        Ok(Offer { id, name, kind, serves: serves != 0, layouts })
    }

    fn layout(&mut self) -> Result<LayoutPrint, HandshakeError> {
        let fingerprint = self.u64("a fingerprint")?;
        let count = usize::from(self.u16("the number of fields")?);
        let count = self.counted("number of fields", count, FIELDS_MAX, FIELD_BYTES_MIN)?;
        let mut fields = Vec::with_capacity(count);
        for _ in 0..count {
            let fingerprint = self.u64("a fingerprint")?;
            let path = self.text("path of a field", PATH_BYTES_MAX)?.to_owned();
            fields.push(FieldPrint { path, fingerprint });
        }
        Ok(LayoutPrint { fingerprint, fields })
    }
}
