use proptest::{collection::vec, prelude::*};

use super::*;
use crate::node::Incarnation;

fn message(number: u8) -> MessageId {
    MessageId::of("message", u16::from(number) + 1)
}

fn node(name: u16, incarnation: u64, shards: u16, messages: &[u8]) -> Arc<Node> {
    Arc::new(Node {
        id: NodeId::new(format!("node{name}")).unwrap(),
        incarnation: Incarnation(incarnation),
        endpoint: std::net::SocketAddr::from(([127, 0, 0, 1], 5000 + name)).into(),
        shards,
        // Some in two layouts: that must change nothing in a view.
        handles: messages
            .iter()
            .flat_map(|number| (0..1 + u64::from(number % 2)).map(|print| (message(*number), print)))
            .collect(),
    })
}

fn up(node: Arc<Node>) -> Arc<Member> {
    Arc::new(Member { node, state: NodeState::Up })
}

fn members() -> impl Strategy<Value = Vec<Arc<Member>>> {
    let state =
        prop_oneof![3 => Just(NodeState::Up), 1 => Just(NodeState::Suspect), 1 => Just(NodeState::Leaving)];
    let one = (0u16..20, 0u64..4, 0u16..3, vec(0u8..6, 0..8), state);
    vec(
        one.prop_map(|(name, incarnation, shards, served, state)| {
            Arc::new(Member { node: node(name, incarnation, shards, &served), state })
        }),
        0..24,
    )
}

/// Too simple to be wrong: looks through all members for each question.
fn newest(members: &[Arc<Member>], id: &NodeId) -> Option<Incarnation> {
    members.iter().map(|member| &member.node).filter(|node| node.id == *id).map(|node| node.incarnation).max()
}

proptest! {
    #[test]
    fn each_id_is_there_once_in_order_and_in_its_newest_life(given in members()) {
        let own = given.first().map(|member| member.node.id.clone());
        let view = View::new(1, own.as_ref(), given.clone(), false);
        prop_assert!(view.members().windows(2).all(|pair| pair[0].node.id < pair[1].node.id));
        for member in &given {
            let found = view.find(&member.node.id).unwrap();
            prop_assert_eq!(Some(found.node.incarnation), newest(&given, &member.node.id));
            let position = view.position(&member.node.id).unwrap();
            prop_assert!(Arc::ptr_eq(&view.members()[position as usize], found));
        }
        prop_assert_eq!(view.own(), own.and_then(|id| view.position(&id)));
        prop_assert!(view.find(&NodeId::new("stranger").unwrap()).is_none());
    }

    #[test]
    fn candidates_are_exactly_the_nodes_that_are_up_and_serve_the_message(given in members()) {
        let view = View::new(1, None, given, false);
        for number in 0..7 {
            let serves = |member: &Member| {
                member.state == NodeState::Up
                    && member.node.shards > 0
                    && member.node.serves(message(number))
            };
            let expected: Vec<u32> =
                (0u32..).zip(view.members()).filter(|(_, member)| serves(member)).map(|(at, _)| at).collect();
            prop_assert_eq!(view.candidates(message(number)), &expected[..]);
        }
    }

    #[test]
    fn an_owner_is_a_candidate_and_does_not_depend_on_how_the_view_came_about(
        (given, shuffled) in members().prop_flat_map(|given| (Just(given.clone()), Just(given).prop_shuffle())),
        keys in vec(any::<u64>(), 1..20),
    ) {
        // Equal lives that differ otherwise are no case: one life describes itself once.
        let mut given = given;
        given.sort_by_key(|member| (member.node.id.clone(), member.node.incarnation));
        given.dedup_by_key(|member| (member.node.id.clone(), member.node.incarnation));
        let shuffled = shuffled.into_iter().filter(|one| given.iter().any(|other| Arc::ptr_eq(one, other))).collect();
        let (one, other) = (View::new(1, None, given, false), View::new(7, None, shuffled, true));
        for number in 0..7 {
            for &key in &keys {
                let owned = owner(&one, message(number), key);
                prop_assert_eq!(owned, owner(&other, message(number), key));
                let candidates = one.candidates(message(number));
                prop_assert_eq!(owned.is_some(), !candidates.is_empty());
                prop_assert!(owned.is_none_or(|position| candidates.contains(&position)));
            }
        }
    }
}

fn cluster(names: impl IntoIterator<Item = u16>) -> View {
    View::new(1, None, names.into_iter().map(|name| up(node(name, 1, 1, &[1, 2]))).collect(), false)
}

fn owner_id(view: &View, key: u64) -> NodeId {
    view.members()[owner(view, message(1), key).unwrap() as usize].node.id.clone()
}

/// Both as keys come: regular numbers, and hashes.
fn keys(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|number| if number % 2 == 0 { number } else { hash_bytes(&number.to_le_bytes()) })
}

/// The sum of squared deviations over their expectation must stay within six standard deviations of its mean, which is the
/// number of degrees of freedom; its variance is twice that. An even choice fails once in many millions of runs, and this
/// one is the same in each run.
#[test]
fn keys_are_spread_evenly_over_their_owners() {
    for nodes in [2u16, 3, 5, 16, 64] {
        let view = cluster(0..nodes);
        let mut owned = vec![0u64; usize::from(nodes)];
        let count = 2_000 * u64::from(nodes);
        for key in keys(count) {
            owned[owner(&view, message(1), key).unwrap() as usize] += 1;
        }
        let expected = (count / u64::from(nodes)) as f64;
        let chi2: f64 = owned.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        let free = f64::from(nodes - 1);
        assert!(chi2 < free + 6.0 * (2.0 * free).sqrt(), "{nodes} nodes: chi-squared {chi2:.1}, {owned:?}");
    }
}

#[test]
fn when_a_node_comes_its_part_of_the_keys_moves_to_it_and_no_other_key_moves() {
    for nodes in [1u16, 2, 3, 8, 32] {
        let (before, after) = (cluster(0..nodes), cluster(0..=nodes));
        let came = NodeId::new(format!("node{nodes}")).unwrap();
        let count = 20_000;
        let mut moved = 0u64;
        for key in keys(count) {
            let (old, new) = (owner_id(&before, key), owner_id(&after, key));
            if old != new {
                // Read backwards, this is the node going: only its keys move.
                assert_eq!(new, came, "a key moved between two nodes that were there all the time");
                moved += 1;
            }
        }
        let part = 1.0 / f64::from(nodes + 1);
        let (mean, deviation) = (count as f64 * part, (count as f64 * part * (1.0 - part)).sqrt());
        assert!(
            (moved as f64 - mean).abs() < 5.0 * deviation,
            "{nodes} nodes: {moved} moved, not about {mean:.0}"
        );
    }
}

#[test]
fn a_node_that_is_not_up_owns_nothing_and_the_same_nodes_own_the_same_key_of_each_message() {
    let all = cluster(0..5);
    let suspect = |member: &Arc<Member>| match member.node.id.as_str() {
        "node2" => Arc::new(Member { node: member.node.clone(), state: NodeState::Suspect }),
        _ => member.clone(),
    };
    let without = View::new(2, None, all.members().iter().map(suspect).collect(), false);
    for key in keys(2_000) {
        let (before, after) = (owner_id(&all, key), owner_id(&without, key));
        assert!(before == after || before.as_str() == "node2");
        assert_ne!(after.as_str(), "node2");
        assert_eq!(owner(&all, message(1), key), owner(&all, message(2), key));
    }
    assert_eq!(owner(&all, message(3), 1), None, "nobody serves it");
}

#[test]
fn the_owner_of_a_key_never_changes_between_versions() {
    // Nodes of different versions must agree. If this fails, the choice was changed: then it needs a new protocol version.
    let view = cluster(0..8);
    let owners: Vec<u32> = (0..8).map(|key| owner(&view, message(1), key).unwrap()).collect();
    assert_eq!(owners, [7, 6, 4, 3, 7, 4, 3, 1]);
}

#[test]
fn the_digest_depends_on_who_is_up_and_not_on_how_it_was_learned() {
    let digest = |epoch, nodes: &[&Arc<Node>]| {
        View::new(epoch, None, nodes.iter().map(|node| up(Arc::clone(node))).collect(), false).digest()
    };
    let (a, b) = (node(1, 1, 2, &[1]), node(2, 1, 2, &[1]));
    let both = digest(1, &[&a, &b]);
    assert_eq!(both, digest(9, &[&b, &a]), "order of news, epoch");
    assert_eq!(both, digest(1, &[&a, &node(2, 1, 2, &[1, 2])]), "messages do not decide about owners");
    assert_ne!(both, digest(1, &[&a]));
    assert_ne!(both, digest(1, &[&a, &node(2, 2, 2, &[1])]), "incarnation");
    assert_ne!(both, digest(1, &[&a, &node(2, 1, 3, &[1])]), "shards");
    assert_ne!(both, digest(1, &[&a, &node(3, 1, 2, &[1])]), "id");
    let suspect = Arc::new(Member { node: b, state: NodeState::Suspect });
    assert_eq!(View::new(1, None, vec![up(a.clone()), suspect], false).digest(), digest(1, &[&a]));
}

#[test]
fn the_empty_view_has_nobody() {
    let view = View::default();
    assert_eq!((view.epoch(), view.members().len(), view.own(), view.forming()), (0, 0, None, false));
    assert!(view.candidates(message(1)).is_empty());
    assert!(view.to_string().starts_with("epoch 0, 0 nodes"));
}

#[test]
fn a_member_says_who_where_how_much_and_how_it_stands() {
    let one = Node { shards: 1, ..(*node(1, 1, 1, &[1])).clone() };
    let leaving = Member { node: Arc::new(one), state: NodeState::Leaving };
    assert_eq!(leaving.to_string(), "node1 at 127.0.0.1:5001, 1 shard, 1 message, leaving");
    assert_eq!(
        up(node(2, 1, 2, &[1, 2, 3])).to_string(),
        "node2 at 127.0.0.1:5002, 2 shards, 3 messages, up"
    );
}

#[test]
fn nodes_that_serve_a_message_in_several_layouts_own_keys_like_the_others() {
    let with = |prints: &[u64]| {
        let mut second = Node::clone(&node(2, 1, 1, &[]));
        second.handles = prints.iter().map(|print| (message(0), *print)).collect();
        let members = vec![up(node(1, 1, 1, &[0])), up(Arc::new(second)), up(node(3, 1, 1, &[0]))];
        View::new(1, None, members, false)
    };
    let (one, two) = (with(&[7]), with(&[9, 7]));
    assert_eq!(two.candidates(message(0)), &[0, 1, 2]);
    assert_eq!(one.digest(), two.digest());
    for key in 0..1000 {
        assert_eq!(owner(&one, message(0), key), owner(&two, message(0), key));
    }
}
