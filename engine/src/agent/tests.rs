use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use catga_discovery::{Contact, Incarnation, NodeId, NodeState, Refused};

use super::*;

const S: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Time {
    Time::ZERO + S * seconds as u32
}

fn address(number: u16) -> SocketAddr {
    ([127, 0, 0, 1], number).into()
}

/// Listens at the port of its number; `node0` is the own one.
fn node(number: u16, incarnation: u64) -> Node {
    Node {
        id: NodeId::new(format!("node{number}")).unwrap(),
        incarnation: Incarnation(incarnation),
        endpoint: address(number).into(),
        shards: 1,
        handles: Vec::new(),
    }
}

fn target(number: u16) -> Target {
    Target { endpoint: address(number).into(), id: Some(node(number, 1).id) }
}

fn unnamed(number: u16) -> Target {
    Target { endpoint: address(number).into(), id: None }
}

fn lanes(with: &[u16]) -> Contacts {
    let contact = |&number: &u16| Contact { node: Arc::new(node(number, 1)), leaving: false };
    Contacts { nodes: with.iter().map(contact).collect(), settled: true, ..Contacts::default() }
}

fn states(view: &View) -> Vec<(&str, NodeState)> {
    view.members().iter().map(|member| (member.node.id.as_str(), member.state)).collect()
}

type Answer = Result<Vec<u16>, &'static str>;

/// Answers from a script: by the time it is asked, or later.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<(VecDeque<Answer>, u64)>>);

impl Script {
    fn will_say(&self, answer: Answer) {
        self.0.lock().unwrap().0.push_back(answer);
    }

    fn asked(&self) -> u64 {
        self.0.lock().unwrap().1
    }
}

impl Resolver for Script {
    fn ask(&mut self, name: &str, _: &AgentWaker) {
        assert_eq!(name, "orders:5001");
        self.0.lock().unwrap().1 += 1;
    }

    fn answer(&mut self) -> Option<io::Result<Vec<SocketAddr>>> {
        let answer = self.0.lock().unwrap().0.pop_front()?;
        Some(answer.map(|found| found.into_iter().map(address).collect()).map_err(io::Error::other))
    }
}

fn with_name(shards: u16) -> (Agent, Vec<Membership>, Script) {
    let script = Script::default();
    let dns = Dns { name: "orders:5001".into(), resolver: Box::new(script.clone()) };
    let (agent, ends) = wire(node(0, 1), Vec::new(), Some(dns), shards);
    (agent, ends, script)
}

fn say(end: &mut Membership, contacts: Contacts) {
    end.contacts.publish(Arc::new(contacts));
}

#[test]
fn every_shard_has_a_view_before_the_first_round_and_the_keeper_its_targets() {
    let (agent, mut ends) = wire(node(0, 1), vec![target(0), target(1)], None, 3);
    for (shard, end) in ends.iter_mut().enumerate() {
        let view = end.views.take().unwrap();
        assert_eq!(states(&view), [("node0", NodeState::Up)]);
        assert!(view.forming());
        assert_eq!(end.targets.is_some(), shard == 0);
    }
    let targets = ends[0].targets.as_mut().unwrap().take().unwrap();
    assert_eq!(targets.0[..], [target(1)]);
    assert_eq!(agent.board().nodes().epoch(), 1);
}

#[test]
fn a_node_is_up_while_any_shard_has_a_lane_with_it_and_all_shards_are_told_alike() {
    let (mut agent, mut ends) = wire(node(0, 1), vec![target(1)], None, 3);
    for end in &mut ends {
        end.views.take();
    }
    let told = |ends: &mut [Membership]| {
        let views: Vec<Option<Arc<View>>> = ends.iter_mut().map(|end| end.views.take()).collect();
        let same = |view: &Option<Arc<View>>| match (view, &views[0]) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        assert!(views.iter().all(same));
        views.into_iter().next().unwrap()
    };

    say(&mut ends[0], lanes(&[1]));
    say(&mut ends[2], lanes(&[1, 2]));
    assert_eq!(agent.round(at(1)), Time::NEVER);
    let view = told(&mut ends).unwrap();
    assert_eq!(states(&view), [("node0", NodeState::Up), ("node1", NodeState::Up), ("node2", NodeState::Up)]);
    assert!(!view.forming());
    assert_eq!(agent.board().nodes().epoch(), view.epoch());

    say(&mut ends[0], lanes(&[]));
    agent.round(at(2));
    assert!(told(&mut ends).is_none(), "shard 2 still has lanes with both");

    say(&mut ends[2], lanes(&[]));
    assert_eq!(agent.round(at(3)), at(33), "then the unlisted one is forgotten");
    let suspect = NodeState::Suspect;
    assert_eq!(
        states(&told(&mut ends).unwrap()),
        [("node0", NodeState::Up), ("node1", suspect), ("node2", suspect)]
    );
    agent.round(at(32));
    assert!(told(&mut ends).is_none());
    assert_eq!(agent.round(at(33)), Time::NEVER);
    assert_eq!(states(&told(&mut ends).unwrap()), [("node0", NodeState::Up), ("node1", suspect)]);
    assert_eq!(agent.board().stats().views, 4);
}

#[test]
fn a_shard_that_looks_seldom_finds_the_newest_view_and_the_newest_targets() {
    let (mut agent, mut ends, script) = with_name(2);
    for second in 1..10 {
        script.will_say(Ok(vec![second]));
        say(&mut ends[1], lanes(&[second]));
        agent.round(at(u64::from(second) * 40));
    }
    assert_eq!(ends[0].views.take().unwrap().epoch(), agent.board().nodes().epoch());
    assert!(ends[0].views.take().is_none());
    assert_eq!(ends[0].targets.as_mut().unwrap().take().unwrap().0[..], [unnamed(9)]);
}

#[test]
fn a_name_is_asked_for_often_while_a_node_is_missing_and_seldom_while_all_are_up() {
    let (mut agent, mut ends, script) = with_name(1);
    assert!(ends[0].targets.as_mut().unwrap().take().is_none(), "nothing is known before the first answer");
    assert_eq!(agent.round(at(1)), Time::NEVER, "woken by the answer");
    agent.round(at(2));
    assert_eq!(script.asked(), 1, "one question at a time");

    script.will_say(Ok(vec![2, 0, 1]));
    assert_eq!(agent.round(at(3)), at(8));
    assert_eq!(ends[0].targets.as_mut().unwrap().take().unwrap().0[..], [unnamed(1), unnamed(2)]);
    assert!(ends[0].views.take().unwrap().forming());

    say(&mut ends[0], lanes(&[1]));
    assert_eq!(agent.round(at(4)), at(8), "node2 is missing");
    assert!(!ends[0].views.take().unwrap().forming());
    say(&mut ends[0], lanes(&[1, 2]));
    assert_eq!(agent.round(at(5)), at(33));
    assert_eq!(script.asked(), 1);

    // A node falls silent after more than the short pause: then it is high time.
    say(&mut ends[0], lanes(&[1]));
    assert_eq!(agent.round(at(20)), at(8));
    script.will_say(Ok(vec![1, 3]));
    assert_eq!(agent.round(at(21)), at(26));
    assert_eq!(script.asked(), 2);
    assert_eq!(ends[0].targets.as_mut().unwrap().take().unwrap().0[..], [unnamed(1), unnamed(3)]);
    // node2 is not in the answer any more: it is forgotten like any other.
    for second in (26..=50).step_by(5) {
        script.will_say(Ok(vec![3, 1]));
        agent.round(at(second));
    }
    assert_eq!(states(&ends[0].views.take().unwrap())[2], ("node2", NodeState::Suspect));
    agent.round(at(50));
    assert_eq!(states(&ends[0].views.take().unwrap()), [("node0", NodeState::Up), ("node1", NodeState::Up)]);
    assert!(ends[0].targets.as_mut().unwrap().take().is_none());
}

#[test]
fn a_lookup_that_fails_changes_nothing_but_its_counter() {
    let (mut agent, mut ends, script) = with_name(1);
    script.will_say(Ok(vec![1]));
    agent.round(at(1));
    ends[0].targets.as_mut().unwrap().take();
    script.will_say(Err("no such host"));
    assert_eq!(agent.round(at(6)), at(11));
    script.will_say(Err("no such host"));
    agent.round(at(11));
    assert!(ends[0].targets.as_mut().unwrap().take().is_none(), "the last answer stands");
    let stats = agent.board().stats();
    assert_eq!((stats.lookups, stats.lookups_failed), (3, 2));
    script.will_say(Ok(vec![2]));
    agent.round(at(16));
    assert_eq!(ends[0].targets.as_mut().unwrap().take().unwrap().0[..], [unnamed(2)]);
    assert_eq!(agent.board().stats().lookups_failed, 2);
}

#[test]
fn nobody_waits_for_a_name_that_cannot_be_resolved() {
    let (mut agent, mut ends, script) = with_name(1);
    script.will_say(Err("the server does not answer"));
    assert_eq!(agent.round(at(1)), at(6), "it is tried again soon");
    assert!(!ends[0].views.take().unwrap().forming());
    assert!(ends[0].targets.as_mut().unwrap().take().unwrap().0.is_empty());
    script.will_say(Ok(vec![1]));
    agent.round(at(6));
    assert_eq!(ends[0].targets.as_mut().unwrap().take().unwrap().0[..], [unnamed(1)]);
    assert!(ends[0].views.take().is_none(), "what has formed does not form again");
}

#[test]
fn a_name_that_is_only_this_nodes_is_asked_for_again_soon_until_somebody_else_is_there() {
    // Of nodes that start together the first may be asked about before the others are behind the name.
    let (mut agent, mut ends, script) = with_name(1);
    script.will_say(Ok(vec![0]));
    assert_eq!(agent.round(at(1)), at(6));
    assert!(!ends[0].views.take().unwrap().forming(), "nobody waits for those who are not there");
    script.will_say(Ok(vec![0]));
    assert_eq!(agent.round(at(6)), at(11), "it is alone still");
    script.will_say(Ok(vec![0, 1]));
    assert_eq!(agent.round(at(11)), at(16));
    assert_eq!(script.asked(), 3);
    say(&mut ends[0], lanes(&[1]));
    assert_eq!(agent.round(at(12)), at(41), "then as seldom as ever");
}

#[test]
fn an_address_that_is_this_node_is_no_target_any_more() {
    let (mut agent, mut ends, script) = with_name(1);
    script.will_say(Ok(vec![1, 2]));
    agent.round(at(1));
    let refused = vec![(unnamed(1), Refused::ThisNode)];
    say(&mut ends[0], Contacts { refused, ..lanes(&[2]) });
    assert_eq!(agent.round(at(2)), at(31), "nobody is missing");
    assert_eq!(ends[0].targets.as_mut().unwrap().take().unwrap().0[..], [unnamed(2)]);
    assert_eq!(agent.board().stats().targets_refused, 0, "nothing is wrong with that");
}

#[test]
fn what_is_wrong_with_the_cluster_is_counted() {
    let (mut agent, mut ends) = wire(node(0, 1), vec![target(1)], None, 2);
    let refused = vec![(target(1), Refused::Because("it has another key".into()))];
    let stranger = Contact { node: Arc::new(node(0, 2)), leaving: false };
    say(&mut ends[0], Contacts { nodes: vec![stranger], refused, ..lanes(&[]) });
    assert_eq!(agent.round(at(1)), at(4));
    agent.round(at(4));
    agent.round(at(5));
    let many = (1..=crate::limits::NODES_MAX as u16 + 2).collect::<Vec<_>>();
    say(&mut ends[1], lanes(&many));
    agent.round(at(6));
    agent.round(at(7));
    let stats = agent.board().stats();
    assert_eq!((stats.targets_refused, stats.ids_shared, stats.nodes_ignored), (1, 1, 2));
}

#[test]
fn a_shard_wakes_the_agents_thread_and_the_end_of_the_agent_ends_the_thread() {
    let (agent, ends) = wire(node(0, 1), vec![target(1)], None, 3);
    let board = agent.board().clone();
    let mut watch = board.watch();
    let thread = AgentThread::start(agent).unwrap();
    // Each shard is told of one more node by its own lane, from its own thread.
    thread::scope(|scope| {
        for (number, mut end) in (1..).zip(ends) {
            scope.spawn(move || {
                say(&mut end, lanes(&[number]));
                end.agent.wake();
            });
        }
    });
    while watch.nodes().len() < 4 {
        // Without the wake there would be nothing to see before the agent has a reason of its own, which it has not.
        assert!(watch.next_within(S * 20).is_some(), "{}", watch.nodes());
    }
    drop(thread);
    assert_eq!(Arc::strong_count(&board), 2, "the agent is gone: what is left is this and the watch's");
}

#[test]
fn a_waker_without_a_thread_does_nothing() {
    let (mut agent, mut ends) = wire(node(0, 1), vec![], None, 1);
    say(&mut ends[0], lanes(&[1]));
    ends[0].agent.wake();
    agent.round(at(1));
    assert_eq!(agent.board().nodes().len(), 2);
}

#[test]
fn an_own_address_that_left_the_answers_and_came_back_is_found_out_again() {
    let (mut agent, mut ends, script) = with_name(1);
    let targets = |ends: &mut [Membership]| {
        let told = ends[0].targets.as_mut().unwrap().take();
        told.map(|targets| targets.0.to_vec())
    };
    let refused = || Contacts { refused: vec![(unnamed(1), Refused::ThisNode)], ..lanes(&[2]) };
    script.will_say(Ok(vec![1, 2]));
    agent.round(at(1));
    say(&mut ends[0], refused());
    agent.round(at(2));
    assert_eq!(targets(&mut ends), Some(vec![unnamed(2)]));
    // The shard drops that dial, and says so.
    say(&mut ends[0], lanes(&[2]));
    agent.round(at(3));
    script.will_say(Ok(vec![2]));
    agent.round(at(40));
    script.will_say(Ok(vec![1, 2]));
    agent.round(at(80));
    assert_eq!(targets(&mut ends), Some(vec![unnamed(1), unnamed(2)]), "it may be another node's by now");
    say(&mut ends[0], lanes(&[2]));
    agent.round(at(81));
    say(&mut ends[0], refused());
    agent.round(at(82));
    assert_eq!(targets(&mut ends), Some(vec![unnamed(2)]));
    assert!(!agent.members.lacks_someone());
}

#[test]
fn the_resolver_of_the_system_answers_from_a_thread_of_its_own() {
    // An address is its own answer, so no server is asked; and what is no name is an error at once.
    for (name, expected) in [("127.0.0.1:5001", Some(vec![address(5001)])), ("no port", None)] {
        let dns = Dns { name: name.into(), resolver: Box::new(SystemResolver::default()) };
        let (agent, mut ends) = wire(node(0, 1), Vec::new(), Some(dns), 1);
        let board = agent.board().clone();
        let mut watch = board.watch();
        let agent = AgentThread::start(agent).unwrap();
        match expected {
            Some(addresses) => {
                let mut found = None;
                let until = Time::read() + S * 20;
                while found.is_none() && Time::read() < until {
                    found = ends[0].targets.as_mut().unwrap().take();
                    thread::yield_now();
                }
                let endpoints: Vec<Endpoint> = addresses.into_iter().map(Endpoint::Tcp).collect();
                assert!(found.unwrap().0.iter().map(|target| &target.endpoint).eq(&endpoints));
            }
            None => {
                assert!(watch.next_within(S * 20).is_some_and(|nodes| !nodes.is_forming()));
                assert_eq!(board.stats().lookups_failed, 1);
            }
        }
        drop(agent);
    }
}
