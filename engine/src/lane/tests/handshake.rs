//! What two greetings come to, and what keeps them apart.

use catga_codec::{Contract, ContractKind, FieldPrint, LayoutPrint, MessageId};
use catga_discovery::NodeId;

use crate::lane::close::CloseReason;
use crate::lane::greeting::{Greeting, Offer};
use crate::lane::handshake::{Agreement, HandshakeError, Role, Verdict, agree};
use crate::lane::model::greeting;

fn dial(ours: &Greeting, theirs: &Greeting) -> Result<Agreement, HandshakeError> {
    agree(Role::Acceptor, ours, theirs, None)
}

fn reason(change: impl Fn(&mut Greeting)) -> CloseReason {
    let mut theirs = greeting("there");
    change(&mut theirs);
    dial(&greeting("here"), &theirs).unwrap_err().close_reason()
}

#[test]
fn both_sides_come_to_the_same() {
    let mut dialer = greeting("here");
    let mut acceptor = greeting("there");
    acceptor.endpoint = "unix:/run/there.sock".into();
    (dialer.version_max, dialer.frame_bytes_max, dialer.calls_max) = (5, 9000, 3);
    (acceptor.version_max, acceptor.frame_bytes_max, acceptor.calls_max) = (3, 5000, 4);
    let there = agree(Role::Acceptor, &acceptor, &dialer, None).unwrap();
    acceptor.shard = there.shard;
    let here = agree(Role::Dialer, &dialer, &acceptor, None).unwrap();
    assert_eq!((here.version, there.version), (3, 3));
    assert_eq!((here.frame_bytes_max, there.frame_bytes_max), (5000, 5000));
    assert_eq!((here.calls_max, there.calls_max), (4, 3), "each keeps to what the other grants");
    assert_eq!((here.shard, here.peer_shard, there.shard, there.peer_shard), (0, 1, 1, 0));
    assert_eq!((here.peer.as_str(), there.peer.as_str()), ("there", "here"));
    assert_eq!((&here.endpoint, &there.endpoint), (&acceptor.endpoint, &dialer.endpoint));
}

#[test]
fn what_cannot_come_together_says_why() {
    assert_eq!(
        reason(|theirs| (theirs.version_min, theirs.version_max) = (2, 2)),
        CloseReason::VersionMismatch
    );
    assert_eq!(reason(|theirs| theirs.cluster = "other".into()), CloseReason::ClusterMismatch);
    assert_eq!(reason(|theirs| theirs.node = NodeId::new("here").unwrap()), CloseReason::ConnectedToSelf);
    assert_eq!(reason(|theirs| theirs.wanted_shard = 2), CloseReason::NoSuchShard);
    assert_eq!(reason(|theirs| theirs.keyed = false), CloseReason::KeyMissing);
    assert_eq!(
        HandshakeError::KeyMissing { here: false }.to_string(),
        "the peer has a cluster key, and this node has none; give both the same `.key(..)`"
    );
    let expected = NodeId::new("third").unwrap();
    let mut theirs = greeting("there");
    let error = agree(Role::Dialer, &greeting("here"), &theirs, Some(&expected)).unwrap_err();
    assert_eq!(error.close_reason(), CloseReason::UnexpectedPeer);
    assert_eq!(
        error.to_string(),
        "expected node `third` at this address, and found `there`; the next view will tell where it is"
    );
    theirs.shard = 0;
    let error = agree(Role::Dialer, &greeting("here"), &theirs, None).unwrap_err();
    assert_eq!(error, HandshakeError::NoSuchShard { wanted: 1, shards: 2 });
}

/// A contract with one field.
fn contract(name: &'static str, kind: ContractKind, path: &str, fingerprint: u64) -> Contract {
    let fields = vec![FieldPrint { path: path.to_owned(), fingerprint }];
    Contract { id: MessageId::of(name, 1), name, version: 1, kind, fingerprint, fields, former: None }
}

#[test]
fn a_differing_contract_refuses_its_message_and_nothing_else() {
    let placed = contract("placed", ContractKind::Event, "placed.order", 1);
    let ours = contract("place", ContractKind::Request, "place.cents", 64);
    let theirs = contract("place", ContractKind::Request, "place.cents", 32);
    let mut left = greeting("here");
    let mut right = greeting("there");
    left.offers = [Offer::of(&ours, true), Offer::of(&placed, true)].into();
    right.offers = [Offer::of(&placed, false), Offer::of(&theirs, true)].into();
    let agreement = dial(&left, &right).unwrap();
    assert_eq!(agreement.verdict(placed.id), Some(&Verdict::Accepted { peer_serves: false }));
    let Some(Verdict::Refused { difference }) = agreement.verdict(ours.id) else { panic!("{agreement:?}") };
    assert!(difference.contains("place.cents"), "{difference}");
    assert_eq!(agreement.verdict(MessageId(1)), None, "a message that one side alone knows has no verdict");
    let there = dial(&right, &left).unwrap();
    assert_eq!(there.verdict(placed.id), Some(&Verdict::Accepted { peer_serves: true }));
    // A side that only sends a message does not list it, and asks when it comes to that.
    left.offers = [].into();
    let agreement = dial(&left, &right).unwrap();
    assert_eq!(agreement.judge(&placed), Some(Verdict::Accepted { peer_serves: false }));
    assert!(matches!(agreement.judge(&ours), Some(Verdict::Refused { .. })));
    assert_eq!(agreement.judge(&theirs), Some(Verdict::Accepted { peer_serves: true }));
    assert_eq!(agreement.judge(&contract("other", ContractKind::Event, "other.x", 1)), None);
}

#[test]
fn a_request_is_not_an_event_of_the_same_name() {
    let mut right = greeting("there");
    let mut offers = right.offers.to_vec();
    offers[0].kind = ContractKind::Event;
    offers[1].name = "collides".to_owned();
    right.offers = offers.into();
    let agreement = dial(&greeting("here"), &right).unwrap();
    let texts: Vec<_> =
        greeting("here").offers.iter().map(|offer| agreement.verdict(offer.id).cloned()).collect();
    let refused = |text: &str| Some(Verdict::Refused { difference: text.to_owned() });
    assert_eq!(texts[0], refused("`place` is a request here and an event there"));
    assert_eq!(texts[1], refused("`placed` here and `collides` there have the same id"));
}

/// What one release after the other says of a message whose one field was renamed in each: its name, and its former one.
fn release(number: usize) -> Contract {
    let paths = ["place.a", "place.b", "place.c", "place.d"];
    let path = |number: usize| FieldPrint { path: paths[number].to_owned(), fingerprint: 64 };
    let former = number
        .checked_sub(1)
        .map(|former| LayoutPrint { fingerprint: former as u64, fields: vec![path(former)] });
    let fields = vec![path(number)];
    Contract { former, fields, ..contract("place", ContractKind::Request, paths[number], number as u64) }
}

#[test]
fn a_message_passes_where_the_sets_of_fingerprints_meet_and_nowhere_else() {
    for here in 0..4 {
        for there in 0..4 {
            let (ours, theirs) = (release(here), release(there));
            let (mut left, mut right) = (greeting("here"), greeting("there"));
            left.offers = [Offer::of(&ours, true)].into();
            right.offers = [Offer::of(&theirs, true)].into();
            let agreement = dial(&left, &right).unwrap();
            let verdicts = [agreement.verdict(ours.id).cloned(), agreement.judge(&ours)];
            let accepted = Some(Verdict::Accepted { peer_serves: true });
            for verdict in verdicts {
                assert_eq!(verdict == accepted, here.abs_diff(there) < 2, "{here} and {there}: {verdict:?}");
            }
            // The node in the view has all of them, under one message.
            let handles = agreement.node().unwrap().handles;
            assert_eq!(handles, theirs.accepts().map(|print| (ours.id, print)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn two_nodes_that_renamed_from_one_former_name_agree_by_it() {
    let former = release(0).layouts().remove(0);
    let renamed = |path, print| Contract {
        former: Some(former.clone()),
        ..contract("place", ContractKind::Request, path, print)
    };
    let (mut left, mut right) = (greeting("here"), greeting("there"));
    left.offers = [Offer::of(&renamed("place.cents", 11), true)].into();
    right.offers = [Offer::of(&renamed("place.pence", 12), true)].into();
    let agreement = dial(&left, &right).unwrap();
    assert_eq!(agreement.verdict(release(0).id), Some(&Verdict::Accepted { peer_serves: true }));
}

#[test]
fn beside_a_rename_the_field_that_differs_is_named() {
    let differing = |number: usize, print: u64| {
        let Contract { mut fields, mut former, .. } = release(number);
        let tax = |print| FieldPrint { path: "place.tax".to_owned(), fingerprint: print };
        fields.push(tax(print));
        if let Some(former) = &mut former {
            former.fields.push(tax(print));
            former.fingerprint += 100 * print;
        }
        Contract { fields, former, fingerprint: number as u64 + 100 * print, ..release(number) }
    };
    let (old, new) = (differing(1, 7), differing(2, 8));
    for (ours, theirs) in [(&old, &new), (&new, &old)] {
        let (mut left, mut right) = (greeting("here"), greeting("there"));
        left.offers = [Offer::of(ours, true)].into();
        right.offers = [Offer::of(theirs, true)].into();
        let difference = "place.tax differs in type or order (by former names)".to_owned();
        assert_eq!(dial(&left, &right).unwrap().verdict(old.id), Some(&Verdict::Refused { difference }));
    }
}
