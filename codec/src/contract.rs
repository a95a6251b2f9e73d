//! What two nodes compare before they exchange a message: everything that must be equal for it never to be
//! misread.
//!
//! For an event that is its own layout and key; for a request also those of its reply and error. Equal
//! fingerprints mean equal layouts. If they differ, the list of fields says where: it holds every field as a
//! path (`PlaceOrder.lines.sku`, `reply OrderPlaced.cents`), the innermost first, so the first difference
//! found is the most precise one.

use crate::hash::{combine, hash64};
use crate::limits::CONTRACT_FIELDS_MAX;
use crate::message::{Event, Message, MessageId, Request};
use crate::shape::Field;

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
    /// Covers everything below: equal fingerprints, equal layouts.
    pub fingerprint: u64,
    /// The fields, innermost first, at most [`CONTRACT_FIELDS_MAX`].
    pub fields: Vec<FieldPrint>,
}

impl Contract {
    /// The contract of a request: it, its reply and its error.
    #[must_use]
    pub fn of_request<R: Request>() -> Self {
        let mut contract = Self::new::<R>(ContractKind::Request, R::KEY);
        contract.include::<R::Reply>("reply ");
        contract.include::<R::Error>("error ");
        contract
    }

    /// The contract of an event.
    #[must_use]
    pub fn of_event<E: Event>() -> Self {
        Self::new::<E>(ContractKind::Event, E::KEY)
    }

    /// Where these fields and those of a peer first differ, as a phrase that names the field. `None` if all
    /// are equal; with different fingerprints that means the difference lies beyond the
    /// [`CONTRACT_FIELDS_MAX`] that are listed.
    #[must_use]
    pub fn first_difference(&self, theirs: &[FieldPrint]) -> Option<String> {
        let find =
            |fields: &[FieldPrint], path: &str| fields.iter().find(|field| field.path == path).cloned();
        if let Some(extra) = self.fields.iter().find(|field| find(theirs, &field.path).is_none()) {
            return Some(format!("{} is not known there", extra.path));
        }
        if let Some(missing) = theirs.iter().find(|field| find(&self.fields, &field.path).is_none()) {
            return Some(format!("{} is not known here", missing.path));
        }
        let differs = |field: &&FieldPrint| find(theirs, &field.path).is_some_and(|other| other != **field);
        self.fields.iter().find(differs).map(|field| format!("{} differs in type or order", field.path))
    }

    fn new<M: Message>(kind: ContractKind, key: Option<&str>) -> Self {
        let mut contract = Self {
            id: M::ID,
            name: M::NAME,
            version: M::VERSION,
            kind,
            fingerprint: hash64(match kind {
                ContractKind::Request => b"request",
                ContractKind::Event => b"event",
            }),
            fields: Vec::new(),
        };
        // Nodes that key one message by different fields would each send to the wrong owner: that is a
        // difference, too.
        let key_print = key.map_or(0, |field| hash64(field.as_bytes()));
        contract.push(format!("key of {}", contract.name), key_print);
        contract.include::<M>("");
        contract
    }

    fn include<M: Message>(&mut self, role: &str) {
        self.fingerprint = combine(self.fingerprint, M::FINGERPRINT);
        let root = format!("{role}{}", M::NAME);
        self.include_fields(&root, M::FIELDS);
        self.list(root, M::FINGERPRINT);
    }

    fn include_fields(&mut self, path: &str, fields: &[Field]) {
        for field in fields {
            // Deep and wide types have more paths than anyone reads; the fingerprint covers all of them
            // anyway.
            if self.fields.len() >= CONTRACT_FIELDS_MAX {
                return;
            }
            let path = format!("{path}.{}", field.name);
            self.include_fields(&path, field.fields);
            self.list(path, field.fingerprint);
        }
    }

    fn push(&mut self, path: String, fingerprint: u64) {
        self.fingerprint = combine(self.fingerprint, fingerprint);
        self.list(path, fingerprint);
    }

    fn list(&mut self, path: String, fingerprint: u64) {
        if self.fields.len() < CONTRACT_FIELDS_MAX {
            self.fields.push(FieldPrint { path, fingerprint });
        }
    }
}
