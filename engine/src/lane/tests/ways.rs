//! What a shard's lanes make of views and targets, before anything is dialled.

use std::net::SocketAddr;
use std::sync::Arc;

use catga_codec::{Contract, Header, Kind, OwnedFrame};
use catga_discovery::{Incarnation, Member, Node, NodeId, NodeState, Target, View};

use crate::Message;
use crate::lane::lanes::Lanes;
use crate::prelude::*;
use crate::time::Time;

#[event]
struct Rung {
    times: u32,
}

/// Node `name` in this life, at an endpoint of its own for each.
fn member(name: &str, life: u16) -> Arc<Member> {
    let fingerprint = Contract::of_event::<Rung>().accepts().next().unwrap();
    let node = Node {
        id: NodeId::new(name).unwrap(),
        incarnation: Incarnation(life.into()),
        endpoint: SocketAddr::from(([10, 0, 0, 1], 1000 + life)).into(),
        shards: 1,
        handles: vec![(Rung::ID, fingerprint)],
    };
    Arc::new(Member { node: Arc::new(node), state: NodeState::Up })
}

fn view(epoch: u64, others: &[Arc<Member>]) -> Arc<View> {
    let own = member("a", 1);
    let members = others.iter().cloned().chain([own.clone()]).collect();
    Arc::new(View::new(epoch, Some(&own.node.id), members, false))
}

#[test]
fn events_that_wait_for_a_node_are_sent_on_their_way_again_when_it_comes_back_elsewhere() {
    let (mut lanes, now) = (Lanes::new(0, None), Time::ZERO);
    lanes.set_view(view(1, &[member("b", 1)]), now);
    let mut event = OwnedFrame::with_capacity(256);
    event.encode(Header::new(Kind::Event), &Rung { times: 3 }).unwrap();
    lanes.publish(&event, Contract::of_event::<Rung>, now);
    assert_eq!(lanes.census().dials, 1, "a lane is to be dialled to where it is");
    // Before that is dialled it has gone: nobody listens there any more.
    lanes.set_view(view(2, &[member("b", 2)]), now);
    assert_eq!(lanes.census().dials, 1, "and one to where it is now");
    let told = lanes.take_told();
    assert_eq!((told.sent, told.dropped), (0, 0), "the event waits on");
    // When it has gone for good, the event is dropped, and counted.
    lanes.set_view(view(3, &[]), now);
    assert_eq!((lanes.take_told().dropped, lanes.census().dials), (1, 0));
}

#[test]
fn the_agent_is_told_what_is_refused_whenever_the_targets_change() {
    let mut lanes = Lanes::new(0, None);
    let target = Target { endpoint: SocketAddr::from(([10, 0, 0, 1], 7)).into(), id: None };
    for targets in [&[target][..], &[]] {
        lanes.aim(targets);
        let contacts = lanes.new_contacts(Time::ZERO).expect("news, if only that nothing is refused");
        assert_eq!((contacts.refused.len(), contacts.settled), (0, targets.is_empty()));
        assert!(lanes.new_contacts(Time::ZERO).is_none());
    }
}
