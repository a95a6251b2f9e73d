//! The line against a model: a list of calls by ticket, each of which waits, has been granted, or is gone.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn id(ticket: u64) -> CallId {
    CallId::new(ticket as u32, 1)
}

fn framed(ticket: u64) -> Option<OwnedFrame> {
    ticket.is_multiple_of(3).then(OwnedFrame::new)
}

#[derive(Clone, Debug)]
enum Step {
    /// A call comes to the line.
    Comes,
    /// One that was granted, the n-th, goes.
    Goes(u8),
    /// It finds no room, and waits again.
    ComesBack(u8),
    /// One of all ends: by its deadline, or because it was given up.
    Ends(u8),
    /// So many places are free.
    Round(u8),
    Time(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Comes),
        6 => any::<u8>().prop_map(Step::Goes),
        3 => any::<u8>().prop_map(Step::ComesBack),
        2 => any::<u8>().prop_map(Step::Ends),
        4 => (0u8..6).prop_map(Step::Round),
        1 => (1u16..1500).prop_map(Step::Time),
    ]
}

/// What the calls of a shard have in common: each has its ticket, and when it was granted, if it was and has not come.
#[derive(Default)]
struct Model {
    calls: BTreeMap<u64, Option<Time>>,
    /// Called and passed over: they hold no place, but still live.
    passed: HashSet<u64>,
    next: u64,
    now: Time,
}

impl Model {
    fn granted(&self) -> Vec<u64> {
        self.calls.iter().filter_map(|(ticket, granted)| granted.map(|_| *ticket)).collect()
    }

    fn waiting(&self) -> Vec<u64> {
        self.calls.iter().filter(|(_, granted)| granted.is_none()).map(|(ticket, _)| *ticket).collect()
    }
}

fn nth(of: &[u64], which: u8) -> Option<u64> {
    (!of.is_empty()).then(|| of[usize::from(which) % of.len()])
}

/// Whether it comes before all that wait to be granted, even if these have ended and nobody has noticed.
fn goes_before(ticket: u64, line: &Line) -> bool {
    line.places.iter().all(|place| place.granted.is_some() || Ticket(ticket) < place.ticket)
}

fn run(steps: Vec<Step>) {
    let (mut line, mut model) = (Line::default(), Model::default());
    for step in steps {
        match step {
            Step::Comes => {
                assert_eq!(line.lets(Ticket::NONE), model.calls.is_empty() && line.is_empty());
                let ticket = model.next;
                model.next += 1;
                let calls = &model.calls;
                let live = |call: CallId| calls.contains_key(&u64::from(call.slot()));
                line.wait(Ticket(ticket), (id(ticket), framed(ticket)), live);
                model.calls.insert(ticket, None);
            }
            Step::Goes(which) => {
                let mut may_go = model.granted();
                may_go.retain(|ticket| goes_before(*ticket, &line));
                may_go.extend(model.passed.iter().filter(|ticket| line.lets(Ticket(**ticket))));
                let Some(ticket) = nth(&may_go, which) else { continue };
                assert!(line.lets(Ticket(ticket)), "it was granted");
                line.gone(Ticket(ticket), 100);
                model.calls.remove(&ticket);
                model.passed.remove(&ticket);
            }
            Step::ComesBack(which) => {
                let mut out = model.granted();
                out.extend(&model.passed);
                let Some(ticket) = nth(&out, which) else { continue };
                line.wait(Ticket(ticket), (id(ticket), framed(ticket)), |_| true);
                model.passed.remove(&ticket);
                model.calls.insert(ticket, None);
            }
            Step::Ends(which) => {
                let all: Vec<u64> = model.calls.keys().copied().collect();
                if let Some(ticket) = nth(&all, which) {
                    model.calls.remove(&ticket);
                }
            }
            Step::Round(room) => round(&mut line, &mut model, u32::from(room)),
            Step::Time(us) => model.now = model.now + Duration::from_micros(us.into()),
        }
        for &ticket in model.calls.keys() {
            let goes = goes_before(ticket, &line);
            assert_eq!(
                line.lets(Ticket(ticket)),
                goes,
                "{ticket} goes if it and all before it have been granted"
            );
        }
    }
    // With room enough, all that have not been granted are, in order.
    let waiting = model.waiting();
    model.calls.retain(|_, granted| granted.is_none());
    line.begin_round(model.now, |call| model.calls.contains_key(&u64::from(call.slot())));
    let live = |call: CallId| model.calls.contains_key(&u64::from(call.slot()));
    let rest: Vec<u64> =
        std::iter::from_fn(|| line.grant(model.now, live)).map(|(call, _)| u64::from(call.slot())).collect();
    assert_eq!(rest, waiting);
}

/// There is room for so many calls, those that were granted before among them.
fn round(line: &mut Line, model: &mut Model, room: u32) {
    let Model { calls, passed, now, .. } = model;
    line.begin_round(*now, |call| calls.get(&u64::from(call.slot())).is_some_and(Option::is_some));
    let silent = |granted: &Option<Time>| granted.is_some_and(|since| now.since(since) >= GRANT_PATIENCE);
    passed.extend(calls.iter().filter(|(_, granted)| silent(granted)).map(|(ticket, _)| *ticket));
    calls.retain(|_, granted| !silent(granted));
    let kept = calls.values().flatten().count() as u32;
    assert_eq!(line.kept().0, kept, "room is kept for those who were granted and may come");
    let expected: Vec<u64> = model.waiting().into_iter().take(room.saturating_sub(kept) as usize).collect();
    let mut granted = Vec::new();
    while line.kept().0 < room {
        let live = |call: CallId| model.calls.contains_key(&u64::from(call.slot()));
        let Some((call, frame)) = line.grant(model.now, live) else { break };
        let ticket = u64::from(call.slot());
        assert_eq!(frame.is_some(), framed(ticket).is_some(), "with its frame");
        granted.push(ticket);
    }
    assert_eq!(granted, expected, "the first ones, and no more than there is room for");
    for ticket in granted {
        model.calls.insert(ticket, Some(model.now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn calls_are_granted_room_in_the_order_in_which_they_came_and_no_more_than_there_is_room_for(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        run(steps);
    }
}

#[test]
fn room_is_kept_by_the_largest_of_the_last_few_that_went() {
    let mut line = Line::default();
    let mut went = |bytes: usize| {
        for ticket in 0..2 {
            line.wait(Ticket(ticket), (id(ticket), None), |_| true);
        }
        assert!(line.grant(Time::ZERO, |_| true).is_some());
        line.gone(Ticket(0), bytes);
        assert!(line.grant(Time::ZERO, |_| true).is_some());
        let kept = line.kept();
        line.gone(Ticket(1), bytes);
        assert!(line.is_empty());
        kept
    };
    assert_eq!(went(100_000), (1, 100_000), "at once");
    for _ in 0..100 {
        assert!(went(96).1 >= 96);
    }
    assert!(went(96).1 < 200, "and in time no more than they take");
}
