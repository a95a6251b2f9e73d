use proptest::{collection::vec, prelude::*};

use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn endpoint(port: u16) -> Endpoint {
    std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()
}

fn node(name: u8, incarnation: u64) -> Arc<Node> {
    let (shards, handles) = (1, Vec::new());
    let id = id(&format!("node{name}"));
    Arc::new(Node {
        id,
        incarnation: Incarnation(incarnation),
        endpoint: endpoint(u16::from(name)),
        shards,
        handles,
    })
}

fn target(name: u8) -> Target {
    Target { endpoint: endpoint(u16::from(name)), id: Some(id(&format!("node{name}"))) }
}

fn unnamed(port: u16) -> Target {
    Target { endpoint: endpoint(port), id: None }
}

fn contact(name: u8, incarnation: u64, leaving: bool) -> Contact {
    Contact { node: node(name, incarnation), leaving }
}

fn contacts(nodes: Vec<Contact>) -> Arc<Contacts> {
    Arc::new(Contacts { nodes, settled: true, ..Contacts::default() })
}

fn refusing(target: Target, why: Refused) -> Arc<Contacts> {
    Arc::new(Contacts { refused: vec![(target, why)], settled: true, ..Contacts::default() })
}

const S: Duration = Duration::from_secs(1);

/// The own node is `node0`, incarnation 10.
fn members(listed: &[u8]) -> Members {
    Members::new((*node(0, 10)).clone(), listed.iter().map(|&name| target(name)).collect(), false)
}

type Standing = (String, u64, NodeState);

fn standings(view: &View) -> Vec<Standing> {
    let one = |member: &Arc<Member>| (member.node.id.to_string(), member.node.incarnation.0, member.state);
    view.members().iter().map(one).collect()
}

fn others(view: &View) -> Vec<Standing> {
    standings(view).into_iter().filter(|(name, ..)| name != "node0").collect()
}

mod against_a_model {
    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Heard(u16, Vec<(u8, u64, bool)>),
        Wait(Duration),
        WaitUntilDue,
    }

    fn step() -> impl Strategy<Value = Step> {
        let nodes = vec((1u8..5, 1u64..4, prop::bool::weighted(0.2)), 0..5);
        prop_oneof![
            4 => (0u16..3, nodes).prop_map(|(shard, nodes)| Step::Heard(shard, nodes)),
            2 => (0u64..40).prop_map(|seconds| Step::Wait(S * seconds as u32)),
            1 => Just(Step::WaitUntilDue),
        ]
    }

    /// One name, told in the words of the rules.
    #[derive(Debug, Clone, Copy)]
    struct Remembered {
        incarnation: u64,
        said_it_leaves: bool,
        last_had_lane: Duration,
        has_lane: bool,
    }

    /// For each name it looks at everything that all shards say, at each moment.
    fn next(
        before: Option<Remembered>,
        lanes: &[(u64, bool)],
        listed: bool,
        now: Duration,
    ) -> Option<Remembered> {
        let silent = |node: &Remembered| !node.has_lane && now - node.last_had_lane >= GONE_AFTER;
        let highest = lanes.iter().map(|lane| lane.0).max();
        let (incarnation, remembers) = match (before, highest) {
            (None, None) => return None,
            (Some(node), None) if silent(&node) && !listed => return None,
            (Some(node), Some(highest)) if !silent(&node) && node.incarnation >= highest => {
                (node.incarnation, true)
            }
            (Some(node), None) => (node.incarnation, true),
            (_, Some(highest)) => (highest, false),
        };
        let its: Vec<bool> = lanes.iter().filter(|lane| lane.0 == incarnation).map(|lane| lane.1).collect();
        let old = before.filter(|_| remembers);
        let lost_just_now = old.is_some_and(|node| node.has_lane);
        Some(Remembered {
            incarnation,
            said_it_leaves: its.contains(&true) || old.is_some_and(|node| node.said_it_leaves),
            has_lane: !its.is_empty(),
            last_had_lane: match old {
                Some(node) if its.is_empty() && !lost_just_now => node.last_had_lane,
                _ => now,
            },
        })
    }

    fn standing(name: u8, node: &Remembered) -> Standing {
        let state = match node {
            Remembered { has_lane: false, .. } => NodeState::Suspect,
            Remembered { said_it_leaves: true, .. } => NodeState::Leaving,
            _ => NodeState::Up,
        };
        (format!("node{name}"), node.incarnation, state)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
        #[test]
        fn each_node_stands_as_the_rules_say_whatever_the_history(steps in vec(step(), 1..40)) {
            // node1 and node2 are listed.
            let mut machine = members(&[1, 2]);
            let mut model: [Option<Remembered>; 5] = [None; 5];
            let mut shards: [Vec<(u8, u64, bool)>; 3] = Default::default();
            let mut now = Duration::ZERO;
            let mut seen = machine.take_view().unwrap();
            for step in steps {
                match step {
                    Step::Heard(shard, nodes) => {
                        let said = nodes.iter().map(|&(name, life, leaving)| contact(name, life, leaving));
                        machine.heard(shard, contacts(said.collect()));
                        shards[usize::from(shard)] = nodes;
                    }
                    Step::Wait(time) => now += time,
                    Step::WaitUntilDue => match machine.next_due() {
                        Some(due) => {
                            prop_assert!(due > now, "what is due was not done");
                            // Nothing happens before.
                            machine.advance(due - Duration::from_nanos(1));
                            prop_assert!(machine.take_view().is_none());
                            now = due;
                        }
                        None => {
                            machine.advance(now + S * 1_000_000);
                            prop_assert!(machine.take_view().is_none(), "something happened that was not due");
                            return Ok(());
                        }
                    }
                }
                machine.advance(now);
                for name in 1..5u8 {
                    let lanes: Vec<(u64, bool)> = shards
                        .iter()
                        .flatten()
                        .filter(|(of, ..)| *of == name)
                        .map(|&(_, life, leaving)| (life, leaving))
                        .collect();
                    let at = usize::from(name);
                    model[at] = next(model[at], &lanes, name <= 2, now);
                }
                let expected: Vec<Standing> =
                    (1..5).filter_map(|name| model[usize::from(name)].map(|node| standing(name, &node))).collect();
                match machine.take_view() {
                    Some(view) => {
                        prop_assert_eq!(view.epoch(), seen.epoch() + 1);
                        prop_assert!(standings(&view) != standings(&seen) || view.forming() != seen.forming());
                        seen = view;
                    }
                    None => prop_assert!(machine.take_notices().iter().all(Notice::is_error)),
                }
                machine.take_notices();
                prop_assert_eq!(others(&seen), expected);
                prop_assert_eq!(seen.own().map(|own| seen.members()[own as usize].state), Some(NodeState::Up));
            }
        }
    }
}

#[test]
fn the_first_view_is_of_this_node_alone_and_forming_if_somebody_is_looked_for() {
    for (listed, forming) in [(&[][..], false), (&[0], false), (&[0, 1], true)] {
        let view = members(listed).take_view().unwrap();
        assert_eq!((view.epoch(), view.own(), view.forming()), (1, Some(0), forming), "{listed:?}");
        assert_eq!(standings(&view), [("node0".into(), 10, NodeState::Up)]);
    }
}

#[test]
fn a_view_forms_until_the_keeper_has_tried_every_target_and_not_again_after() {
    let mut members = members(&[1]);
    members.take_view();
    members.heard(1, contacts(vec![]));
    members.heard(KEEPER, Arc::new(Contacts::default()));
    members.advance(S);
    assert!(members.take_view().is_none(), "another shard knows nothing of targets");
    members.heard(KEEPER, contacts(vec![]));
    members.advance(S);
    assert!(!members.take_view().unwrap().forming());
    members.heard(KEEPER, Arc::new(Contacts::default()));
    members.resolved(vec![endpoint(7)]);
    members.advance(S);
    assert!(members.take_view().is_none());
}

#[test]
fn targets_are_the_listed_and_the_resolved_ones_each_once_and_never_this_node() {
    let mut members = members(&[0, 1, 2]);
    assert_eq!(members.take_targets().unwrap()[..], [target(1), target(2)]);
    assert!(members.take_targets().is_none());
    members.resolved(vec![endpoint(9), endpoint(0), endpoint(2), endpoint(9)]);
    members.advance(S);
    assert_eq!(members.take_targets().unwrap()[..], [target(1), target(2), unnamed(9)]);
    members.resolved(vec![endpoint(2), endpoint(9), endpoint(0)]);
    members.advance(S);
    assert!(members.take_targets().is_none(), "an answer in another order is no change");
}

#[test]
fn with_a_name_there_are_no_targets_and_the_view_forms_until_an_answer() {
    let own = (*node(0, 10)).clone();
    let mut members = Members::new(own.clone(), vec![], true);
    members.advance(S);
    assert!(members.take_view().unwrap().forming());
    assert!(members.take_targets().is_none());
    members.resolved(vec![endpoint(0), endpoint(1)]);
    members.advance(S);
    assert_eq!(members.take_targets().unwrap()[..], [unnamed(1)]);
    assert!(members.take_view().is_none(), "nobody has tried it yet");
    members.heard(KEEPER, contacts(vec![contact(1, 1, false)]));
    assert!(members.lacks_someone());
    members.advance(S);
    assert!(!members.take_view().unwrap().forming());
    assert!(!members.lacks_someone());

    let mut alone = Members::new(own, vec![], true);
    alone.take_view();
    alone.resolved(vec![]);
    alone.advance(S);
    assert!(alone.take_targets().unwrap().is_empty());
    assert!(!alone.take_view().unwrap().forming(), "there is nobody to wait for");
}

#[test]
fn a_node_that_is_not_in_the_answer_any_more_is_forgotten_like_any_other() {
    let mut members = Members::new((*node(0, 10)).clone(), vec![], true);
    members.resolved(vec![endpoint(1)]);
    members.heard(0, contacts(vec![contact(1, 1, false)]));
    members.advance(S);
    members.heard(0, contacts(vec![]));
    members.advance(S * 2);
    members.advance(S * 100);
    assert_eq!(
        others(&members.take_view().unwrap()),
        [("node1".into(), 1, NodeState::Suspect)],
        "it is listed"
    );
    members.resolved(vec![]);
    members.advance(S * 101);
    assert_eq!(others(&members.take_view().unwrap()), []);
    let notices = members.take_notices();
    assert_eq!(notices.last().unwrap().to_string(), "node1 is forgotten: no lane for 30 s");
}

#[test]
fn a_target_that_is_this_node_is_dropped_until_its_address_is_gone() {
    let mut members = Members::new((*node(0, 10)).clone(), vec![target(3)], true);
    members.resolved(vec![endpoint(8), endpoint(9)]);
    members.advance(S);
    members.take_targets();
    members.heard(KEEPER, refusing(unnamed(8), Refused::ThisNode));
    members.advance(S);
    assert_eq!(members.take_targets().unwrap()[..], [target(3), unnamed(9)]);
    assert_eq!(members.take_notices(), [Notice::ThisNode(unnamed(8))]);
    members.resolved(vec![endpoint(8)]);
    members.heard(KEEPER, contacts(vec![]));
    members.advance(S);
    assert_eq!(members.take_targets().unwrap()[..], [target(3)], "the answer still has it");
    members.resolved(vec![]);
    members.advance(S);
    members.resolved(vec![endpoint(8)]);
    members.advance(S);
    assert_eq!(members.take_targets().unwrap()[..], [target(3), unnamed(8)], "it may be another node's now");
}

#[test]
fn a_refused_target_is_told_once_for_each_reason() {
    let mut members = members(&[1]);
    let because = |reason: &str| refusing(target(1), Refused::Because(reason.into()));
    let mut told = Vec::new();
    for said in [because("another key"), because("another key"), because("another cluster"), contacts(vec![])]
    {
        members.heard(0, said.clone());
        members.heard(1, said);
        members.advance(S);
        told.extend(members.take_notices());
    }
    assert_eq!(
        told,
        ["another key", "another cluster"].map(|reason| Notice::Refused(target(1), reason.into()))
    );
    assert!(told[0].is_error());
    assert_eq!(told[0].to_string(), "no lane to node1 at 127.0.0.1:1: another key");
    assert!(
        members.take_targets().is_some_and(|targets| targets[..] == [target(1)]),
        "it is looked for as before"
    );
}

#[test]
fn two_lives_under_one_id_are_told_once_if_it_is_more_than_a_restart() {
    let mut members = members(&[]);
    let mut told = |second: Duration, zero: Vec<Contact>, one: Vec<Contact>| {
        members.heard(0, contacts(zero));
        members.heard(1, contacts(one));
        members.advance(second);
        let due = members.next_due();
        (members.take_notices().into_iter().filter(Notice::is_error).collect::<Vec<_>>(), due)
    };
    // A restart: for a moment one shard still has its lane to the old life.
    let (old, new) = (contact(1, 1, false), contact(1, 2, false));
    assert_eq!(told(S, vec![new.clone()], vec![old.clone()]), (vec![], Some(S + RIVALS_AFTER)));
    assert_eq!(told(S * 2, vec![new.clone()], vec![new.clone()]), (vec![], None));
    // Two processes.
    assert_eq!(told(S * 10, vec![new.clone()], vec![old.clone()]), (vec![], Some(S * 10 + RIVALS_AFTER)));
    let both = (vec![Notice::TwoLives(node(1, 2), node(1, 1))], None);
    assert_eq!(told(S * 13, vec![new.clone()], vec![old.clone()]), both);
    assert_eq!(told(S * 14, vec![new.clone()], vec![old]), (vec![], None), "once");
    // Somebody who has this node's own id, with a higher number even.
    let stranger = contact(0, 11, false);
    assert!(told(S * 20, vec![stranger.clone()], vec![]).0.is_empty());
    let (notices, _) = told(S * 23, vec![stranger], vec![]);
    assert_eq!(notices, [Notice::TwoLives(node(0, 10), node(0, 11))]);
    assert!(notices[0].to_string().starts_with("two nodes have the id node0: "), "{}", notices[0]);
}

#[test]
fn a_life_that_keeps_being_turned_away_is_told_once_however_seldom_it_comes_again() {
    let mut members = members(&[]);
    let mut told = |second: Duration, living: Option<u64>, superseded: &[Superseded]| {
        let nodes = living.map(|incarnation| contact(1, incarnation, false)).into_iter().collect();
        let said = Contacts { superseded: superseded.to_vec(), ..(*contacts(nodes)).clone() };
        members.heard(0, Arc::new(said));
        members.advance(second);
        members.take_notices().into_iter().filter(Notice::is_error).collect::<Vec<_>>()
    };
    let old = [Superseded::Theirs(node(1, 1))];
    assert_eq!(told(S, Some(2), &[]), []);
    assert_eq!(
        told(S * 4, Some(2), &old),
        [Notice::TwoLives(node(1, 2), node(1, 1))],
        "the shard has judged"
    );
    assert_eq!(told(S * 5, Some(2), &old), []);
    assert_eq!(told(S * 6, Some(2), &[]), [], "it comes seldom");
    assert_eq!(told(S * 35, Some(2), &old), []);
    assert_eq!(told(S * 66, Some(2), &[]), []);
    assert_eq!(told(S * 67, Some(2), &old).len(), 1, "half a minute of peace, and here it is again");
    // The later one has gone: then the earlier one has the id for itself.
    assert_eq!(told(S * 140, None, &[]), []);
    assert_eq!(told(S * 141, Some(1), &old), []);
}

#[test]
fn a_node_that_peers_turn_away_for_a_later_one_says_so_once() {
    let mut members = members(&[1, 2]);
    let mut told = |second: Duration, shard: u16, by: u8| {
        let superseded = vec![Superseded::Own(node(by, 1))];
        members.heard(shard, Arc::new(Contacts { superseded, ..Contacts::default() }));
        members.advance(second);
        members.take_notices().into_iter().filter(Notice::is_error).collect::<Vec<_>>()
    };
    let notices = told(S, 0, 1);
    assert_eq!(notices, [Notice::Outlived(node(0, 10), node(1, 1))]);
    let line = notices[0].to_string();
    for part in ["the id node0 of this one", "node1 at 127.0.0.1:1", "incarnation 10", "give it another id"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(told(S * 2, 0, 1), []);
    assert_eq!(told(S * 3, 1, 2), [], "another peer says nothing new");
}

#[test]
fn a_node_whose_clock_was_set_back_is_taken_when_its_other_life_is_long_silent() {
    let mut members = members(&[1]);
    members.heard(0, contacts(vec![contact(1, 9, true)]));
    members.advance(S);
    members.heard(0, contacts(vec![contact(1, 4, false)]));
    members.advance(S * 2);
    assert_eq!(others(&members.take_view().unwrap()), [("node1".into(), 9, NodeState::Suspect)]);
    assert_eq!(members.next_due(), Some(S * 2 + GONE_AFTER));
    members.advance(S * 2 + GONE_AFTER);
    assert_eq!(others(&members.take_view().unwrap()), [("node1".into(), 4, NodeState::Up)]);
}

#[test]
fn there_is_a_bound_on_nodes_and_each_one_too_many_is_told_once() {
    let mut members = members(&[]);
    let named = |numbers: std::ops::Range<usize>| {
        let one = |number| Node { id: id(&format!("n{number}")), ..(*node(1, 1)).clone() };
        contacts(numbers.map(|number| Contact { node: Arc::new(one(number)), leaving: false }).collect())
    };
    let mut told = |second: u32, numbers: std::ops::Range<usize>| {
        // Two shards have lanes to it.
        members.heard(0, named(numbers.clone()));
        members.heard(1, named(numbers));
        members.advance(S * second);
        let ignored = members.take_notices().into_iter().filter_map(|notice| match notice {
            Notice::TooMany(node) => Some(node.id.to_string()),
            _ => None,
        });
        (ignored.collect::<Vec<_>>(), members.known.len(), members.ignored.len())
    };
    assert_eq!(told(1, 0..NODES_MAX + 1), (vec!["n4096".into()], NODES_MAX, 1));
    assert_eq!(told(2, 0..NODES_MAX + 1), (vec![], NODES_MAX, 1), "in the next round it is no news");
    assert_eq!(told(3, 0..NODES_MAX + 2), (vec!["n4097".into()], NODES_MAX, 2));
    assert_eq!(told(4, 0..NODES_MAX), (vec![], NODES_MAX, 2));
    assert_eq!(told(5, 0..NODES_MAX + 2), (vec![], NODES_MAX, 2), "nor when its lane was lost for a while");
    // The first is forgotten, and makes room for one of them.
    told(6, 1..NODES_MAX + 2);
    assert_eq!(told(40, 1..NODES_MAX + 2), (vec![], NODES_MAX, 1));
    let (names, _, ignored) = told(41, 1..3 * NODES_MAX);
    assert_eq!((names.len(), ignored), (NODES_MAX - 1, NODES_MAX), "there is a bound on those as well");
}
