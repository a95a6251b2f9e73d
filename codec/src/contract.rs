//! What two nodes compare before they exchange a message: everything that must be equal for it never to be
//! misread.
//!
//! For an event that is its own layout and key; for a request also those of its reply and error. Equal
//! fingerprints mean equal layouts. A contract whose fields were renamed has two, by the present names and by
//! the former ones; both are of the one layout there is, so two nodes may exchange the message if any
//! fingerprint here equals any one there.
//!
//! If none does, the lists of fields say where: a list holds every field as a path (`PlaceOrder.lines.sku`,
//! `reply OrderPlaced.cents`), the innermost first, so the first difference found is the most precise one. The
//! lists that are compared are the two that differ least, so that a rename hides no other change.

use std::collections::BTreeMap;

use crate::hash::{combine, hash64};
use crate::limits::CONTRACT_FIELDS_MAX;
use crate::message::{Event, Message, MessageId, Request};
use crate::shape::{Field, Names};

/// Whether a contract is about a request or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContractKind {
    /// A request with its reply and error.
    Request,
    /// An event.
    Event,
}

/// The fingerprint of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldPrint {
    /// Where the field is: `PlaceOrder.lines.sku`, `reply OrderPlaced.cents`.
    pub path: String,
    /// The fingerprint of its type.
    pub fingerprint: u64,
}

/// The fingerprint of all that a contract covers, by one set of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutPrint {
    /// Covers everything below: equal fingerprints, equal layouts.
    pub fingerprint: u64,
    /// The fields, innermost first, at most [`CONTRACT_FIELDS_MAX`].
    pub fields: Vec<FieldPrint>,
}

/// Everything about a request or event that two nodes must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// The message.
    pub id: MessageId,
    /// Its stable name.
    pub name: &'static str,
    /// Its version.
    pub version: u16,
    /// Whether it is a request or an event.
    pub kind: ContractKind,
    /// Covers everything below, by the present names: equal fingerprints, equal layouts.
    pub fingerprint: u64,
    /// The fields, innermost first, at most [`CONTRACT_FIELDS_MAX`].
    pub fields: Vec<FieldPrint>,
    /// The same layout by the former names, if anything in it was renamed.
    pub former: Option<LayoutPrint>,
}

/// Where the layouts that a node has of a message and those that a peer has of it first differ, as a phrase
/// that names the field. Of each side the one layout counts that is nearest to the other side's. `None` if
/// their lists are equal; with different fingerprints that means the difference lies beyond the
/// [`CONTRACT_FIELDS_MAX`] that are listed.
#[must_use]
pub fn first_difference(ours: &[LayoutPrint], theirs: &[LayoutPrint]) -> Option<String> {
    let pairs = ours
        .iter()
        .enumerate()
        .flat_map(|(i, our)| theirs.iter().enumerate().map(move |(j, their)| (i + j, our, their)));
    // The first layout of each side is the one by present names; it wins a tie.
    let (by_former, our, their) = pairs.min_by_key(|(names, our, their)| (our.differences(their), *names))?;
    let difference = our.first_difference(their)?;
    Some(if by_former == 0 { difference } else { format!("{difference} (by former names)") })
}

impl LayoutPrint {
    fn by_path(&self) -> BTreeMap<&str, u64> {
        self.fields.iter().map(|field| (field.path.as_str(), field.fingerprint)).collect()
    }

    /// How many fields only one of the two has, or they have otherwise.
    fn differences(&self, theirs: &Self) -> usize {
        let (here, there) = (self.by_path(), theirs.by_path());
        let missing = there.keys().filter(|path| !here.contains_key(*path)).count();
        missing + here.iter().filter(|(path, print)| there.get(*path) != Some(*print)).count()
    }

    fn first_difference(&self, theirs: &Self) -> Option<String> {
        let (here, there) = (self.by_path(), theirs.by_path());
        if let Some(extra) = self.fields.iter().find(|field| !there.contains_key(field.path.as_str())) {
            return Some(format!("{} is not known there", extra.path));
        }
        if let Some(missing) = theirs.fields.iter().find(|field| !here.contains_key(field.path.as_str())) {
            return Some(format!("{} is not known here", missing.path));
        }
        let differs = |field: &&FieldPrint| there.get(field.path.as_str()) != Some(&field.fingerprint);
        self.fields.iter().find(differs).map(|field| format!("{} differs in type or order", field.path))
    }
}

impl Contract {
    /// The contract of a request: it, its reply and its error.
    #[must_use]
    pub fn of_request<R: Request>() -> Self {
        let parts = [Part::of::<R>(""), Part::of::<R::Reply>("reply "), Part::of::<R::Error>("error ")];
        Self::new::<R>(ContractKind::Request, R::KEY, &parts)
    }

    /// The contract of an event.
    #[must_use]
    pub fn of_event<E: Event>() -> Self {
        Self::new::<E>(ContractKind::Event, E::KEY, &[Part::of::<E>("")])
    }

    /// The fingerprints of the layouts that this node can read and write the message in: one, or two if
    /// something was renamed. All are of the same bytes.
    pub fn accepts(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.fingerprint).chain(self.former.as_ref().map(|former| former.fingerprint))
    }

    /// The layouts of [`accepts`](Self::accepts) with their fields, the one by present names first.
    #[must_use]
    pub fn layouts(&self) -> Vec<LayoutPrint> {
        let present = LayoutPrint { fingerprint: self.fingerprint, fields: self.fields.clone() };
        std::iter::once(present).chain(self.former.clone()).collect()
    }

    fn new<M: Message>(kind: ContractKind, key: Option<&str>, parts: &[Part]) -> Self {
        let layout = |names| {
            // Nodes that key one message by different fields would each send to the wrong owner: that is a
            // difference, too.
            let key = key.map(|key| key_in::<M>(key, names));
            LayoutPrint::of(kind, M::NAME, key, parts, names)
        };
        let present = layout(Names::Present);
        let is_renamed = parts.iter().any(|part| part.former != part.fingerprint);
        Self {
            id: M::ID,
            name: M::NAME,
            version: M::VERSION,
            kind,
            former: is_renamed.then(|| layout(Names::Former)),
            fingerprint: present.fingerprint,
            fields: present.fields,
        }
    }
}

/// What the field that is the key is called among these names.
fn key_in<M: Message>(key: &str, names: Names) -> &str {
    M::FIELDS.iter().find(|field| field.name == key).map_or(key, |field| field.name_in(names))
}

/// One of the messages that a contract covers.
struct Part {
    /// What it is in the contract, before its name in a path.
    role: &'static str,
    name: &'static str,
    fields: &'static [Field],
    fingerprint: u64,
    former: u64,
}

impl Part {
    const fn of<M: Message>(role: &'static str) -> Self {
        Self { role, name: M::NAME, fields: M::FIELDS, fingerprint: M::FINGERPRINT, former: M::FORMER }
    }
}

impl LayoutPrint {
    fn of(kind: ContractKind, name: &str, key: Option<&str>, parts: &[Part], names: Names) -> Self {
        let fingerprint = hash64(match kind {
            ContractKind::Request => b"request",
            ContractKind::Event => b"event",
        });
        let mut layout = Self { fingerprint, fields: Vec::new() };
        let key_print = key.map_or(0, |field| hash64(field.as_bytes()));
        layout.fingerprint = combine(layout.fingerprint, key_print);
        layout.list(format!("key of {name}"), key_print);
        for part in parts {
            let print = match names {
                Names::Present => part.fingerprint,
                Names::Former => part.former,
            };
            layout.fingerprint = combine(layout.fingerprint, print);
            let root = format!("{}{}", part.role, part.name);
            layout.include_fields(&root, part.fields, names);
            layout.list(root, print);
        }
        layout
    }

    fn include_fields(&mut self, path: &str, fields: &[Field], names: Names) {
        for field in fields {
            // Deep and wide types have more paths than anyone reads; the fingerprint covers all of them
            // anyway.
            if self.fields.len() >= CONTRACT_FIELDS_MAX {
                return;
            }
            let path = format!("{path}.{}", field.name_in(names));
            self.include_fields(&path, field.fields, names);
            self.list(path, field.fingerprint_in(names));
        }
    }

    fn list(&mut self, path: String, fingerprint: u64) {
        if self.fields.len() < CONTRACT_FIELDS_MAX {
            self.fields.push(FieldPrint { path, fingerprint });
        }
    }
}
