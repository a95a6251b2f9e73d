//! Where messages are handled inside the engine.
//!
//! The table is built once, when the engine starts, from what the services declare, and is shared read-only by all shards
//! and clients. It is indexed by the dense type index that each message type has in this process, so finding a handler
//! hashes nothing. Frames from other nodes carry the message's id instead; one small map leads from it to the index.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use catga_codec::{Contract, MessageId, TypeIndex};
use catga_discovery::sync::atomic::{AtomicU64, Ordering};

use crate::builder::StartError;
use crate::description::Declared;
use crate::instance::Owned;
use crate::limits::SHARDS_MAX;
use crate::service::Declaration;

/// The shards that handle one message.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    shards: Box<[u16]>,
    keyed: bool,
}

/// Who gets one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipients<'a> {
    /// The owner of its key.
    Owner(u16),
    /// A request: any one of these. An event: all of these.
    AnyOf(&'a [u16]),
}

impl Recipients<'_> {
    /// All of them.
    pub(crate) fn shards(&self) -> &[u16] {
        match self {
            Self::Owner(shard) => std::slice::from_ref(shard),
            Self::AnyOf(shards) => shards,
        }
    }
}

/// Which of so many equal parts of the keys the key with this hash is in.
#[inline]
pub(crate) fn part_of(hash: u64, parts: usize) -> usize {
    // The high half of the product spreads evenly without a division.
    ((u128::from(hash) * parts as u128) >> 64) as usize
}

impl Shards {
    /// A key belongs to one of the shards that handle the message: the same on every node with as many of them.
    #[inline]
    pub(crate) fn place(&self, key: u64) -> Recipients<'_> {
        if self.keyed {
            Recipients::Owner(self.shards[part_of(key, self.shards.len())])
        } else {
            Recipients::AnyOf(&self.shards)
        }
    }
}

/// A hasher for keys that are hashes already.
#[derive(Default)]
pub(crate) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8) | u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub(crate) type ByMessage<T> = HashMap<MessageId, T, BuildHasherDefault<AlreadyHashed>>;

/// Where each message is handled in this engine.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    requests: Vec<Option<Shards>>,
    events: Vec<Option<Shards>>,
    by_id: ByMessage<TypeIndex>,
    contracts: Vec<Contract>,
    pub(crate) stuck: Stuck,
}

/// The shards that are out of use, because one message has kept them busy for too long or because their thread has died.
/// Hardly ever written, by the watchdog or a dying shard, so that looking costs a read of a line that every core has.
#[derive(Debug, Default)]
pub(crate) struct Stuck {
    out_of_use: Bits,
    /// Of those, the ones that will not come back.
    dead: Bits,
}

type Bits = [AtomicU64; SHARDS_MAX / 64];

impl Stuck {
    #[inline]
    pub(crate) fn contains(&self, shard: u16) -> bool {
        // Relaxed: nothing hangs on when it is seen.
        self.out_of_use[usize::from(shard / 64)].load(Ordering::Relaxed) >> (shard % 64) & 1 != 0
    }

    /// The watchdog has found it stuck, or going on. One that has died stays out of use.
    pub(crate) fn set(&self, shard: u16, stuck: bool) {
        let (word, bit) = (usize::from(shard / 64), 1 << (shard % 64));
        if !stuck {
            // AcqRel: pairs with the one in `dies`. Either that comes after this and sets the bit again, or its death is seen
            // below.
            self.out_of_use[word].fetch_and(!bit, Ordering::AcqRel);
        }
        if stuck || self.is_dead(shard) {
            self.out_of_use[word].fetch_or(bit, Ordering::Relaxed); // as in `contains`
        }
    }

    /// Its thread ends, and not because the engine stops: it stays out of use.
    pub(crate) fn dies(&self, shard: u16) {
        let (word, bit) = (usize::from(shard / 64), 1 << (shard % 64));
        self.dead[word].fetch_or(bit, Ordering::Relaxed); // published by the next one
        self.out_of_use[word].fetch_or(bit, Ordering::AcqRel); // pairs with the one in `set`
    }

    /// Whether its thread has ended so.
    pub(crate) fn is_dead(&self, shard: u16) -> bool {
        self.dead[usize::from(shard / 64)].load(Ordering::Relaxed) >> (shard % 64) & 1 != 0 // as in `contains`
    }

    /// Round robin over the shards that are not stuck.
    #[inline]
    pub(crate) fn next_of(&self, shards: &[u16], turn: usize) -> Option<u16> {
        self.next_among(shards.len(), turn, |place| shards[place])
    }

    /// The same over so many shards, `shard` being the one at a place.
    #[inline]
    pub(crate) fn next_among(&self, count: usize, turn: usize, shard: impl Fn(usize) -> u16) -> Option<u16> {
        let first = shard(if count == 1 { 0 } else { turn % count });
        if !self.contains(first) {
            return Some(first);
        }
        (1..count).map(|step| shard(turn.wrapping_add(step) % count)).find(|&shard| !self.contains(shard))
    }
}

impl RouteTable {
    /// Merges what all services declare. `declared` pairs each declaration with the shards of its service.
    pub(crate) fn build(declared: &[Declared]) -> Result<Self, StartError> {
        let mut table = Self::default();
        let mut handled_by: ByMessage<&Declaration> = ByMessage::default();
        for (declaration, shards) in declared {
            let contract = &declaration.contract;
            if let Some(first) = handled_by.insert(contract.id, declaration) {
                if first.type_index != declaration.type_index {
                    return Err(StartError::SameId {
                        first: first.contract.name.to_string(),
                        second: contract.name.to_string(),
                        version: contract.version,
                    });
                }
                if declaration.is_request {
                    return Err(StartError::TwoHandlers {
                        message: contract.name.to_string(),
                        first: first.service,
                        second: declaration.service,
                    });
                }
            } else {
                table.by_id.insert(contract.id, declaration.type_index);
                table.contracts.push(contract.clone());
            }
            let column = if declaration.is_request { &mut table.requests } else { &mut table.events };
            let index = declaration.type_index.get() as usize;
            if column.len() <= index {
                column.resize(index + 1, None);
            }
            match &mut column[index] {
                Some(known) => {
                    let mut merged = known.shards.to_vec();
                    merged.extend(shards.iter().filter(|shard| !known.shards.contains(shard)));
                    merged.sort_unstable();
                    known.shards = merged.into();
                }
                empty => *empty = Some(Shards { shards: shards.clone(), keyed: declaration.keyed }),
            }
        }
        Ok(table)
    }

    /// The shards that handle a request.
    #[inline]
    pub(crate) fn request(&self, index: u32) -> Option<&Shards> {
        self.requests.get(index as usize)?.as_ref()
    }

    /// The shards with listeners for an event.
    #[inline]
    pub(crate) fn listeners(&self, index: u32) -> Option<&Shards> {
        self.events.get(index as usize)?.as_ref()
    }

    /// The shards among which the keys of a service's messages are divided; `None` if none of them has a key.
    ///
    /// # Errors
    /// The names of two messages whose keys are divided differently: other services handle one of them as well.
    pub(crate) fn owners<'a>(
        &self,
        handlers: impl IntoIterator<Item = &'a Declaration>,
    ) -> Result<Option<&[u16]>, (String, String)> {
        let mut first: Option<(&Declaration, &[u16])> = None;
        for handler in handlers.into_iter().filter(|handler| handler.keyed) {
            let column = if handler.is_request { &self.requests } else { &self.events };
            let Some(Some(route)) = column.get(handler.type_index.get() as usize) else { continue };
            match first {
                None => first = Some((handler, &route.shards)),
                Some((known, shards)) if shards != &*route.shards => {
                    return Err((known.contract.name.to_string(), handler.contract.name.to_string()));
                }
                Some(_) => {}
            }
        }
        Ok(first.map(|(_, shards)| shards))
    }

    /// The part of the keys that a service owns on a shard, if its messages have keys that are divided alike.
    pub(crate) fn owned<'a>(
        &self,
        handlers: impl IntoIterator<Item = &'a Declaration>,
        shard: u16,
    ) -> Option<Owned> {
        let shards = self.owners(handlers).ok().flatten()?;
        let part = shards.iter().position(|owner| *owner == shard)?;
        Some(Owned::new(part, shards.len()))
    }

    /// The type index behind the id in a frame from another node.
    #[inline]
    pub(crate) fn index_of(&self, id: MessageId) -> Option<u32> {
        self.by_id.get(&id).copied().map(TypeIndex::get)
    }

    /// The name of the message with this type index, for logs.
    pub(crate) fn name_of(&self, index: u32) -> Option<&str> {
        let (id, _) = self.by_id.iter().find(|(_, known)| known.get() == index)?;
        let contract = self.contracts.iter().find(|contract| contract.id == *id)?;
        Some(contract.name)
    }

    /// How many messages have handlers.
    pub(crate) fn len(&self) -> usize {
        self.contracts.len()
    }

    /// What this engine handles, for the handshake.
    pub(crate) fn contracts(&self) -> &[Contract] {
        &self.contracts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_has_died_stays_out_of_use_whatever_the_watchdog_says() {
        for shard in [0, 63, 64, SHARDS_MAX as u16 - 1] {
            let stuck = Stuck::default();
            stuck.set(shard, true);
            stuck.set(shard, false);
            assert!(!stuck.contains(shard), "its turn was over");
            stuck.set(shard, true);
            stuck.dies(shard);
            stuck.set(shard, false);
            assert!(stuck.contains(shard));
            assert!((0..SHARDS_MAX as u16).all(|other| other == shard || !stuck.contains(other)));
        }
    }
}
