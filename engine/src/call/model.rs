//! The call table against a model that is too simple to be wrong: a list of all calls ever made, and what became of each.
//!
//! Any sequence of operations, on calls that live and on calls that are long gone: each call has one ending, whoever
//! comes late finds nothing, an id never names two calls, and the table never holds more than its limit. A call that moves
//! on waits again with the request that was kept for it, and its outcome is that of all its attempts together.

mod way;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake as WakeTask, Waker};
use std::time::Duration;

use catga_codec::{CallId, Header, Kind, OwnedFrame};
use proptest::prelude::*;

use self::way::Way;
use super::table::{BatchId, CallTable, Ending, LaneKey, Target, Wake};
use crate::choice::Choice;
use crate::error::{Failure, NotSent, Refusal, Unknown};
use crate::limits::EXPIRY_SWEEP;
use crate::time::Time;

#[derive(Clone, Debug)]
enum Operation {
    Open {
        within_us: u16,
        waiter: u8,
    },
    /// The numbers choose a call among all that were ever made.
    Send {
        call: u8,
        target: u8,
    },
    /// The attempt has come to nothing, and another one follows: after a node has had the call, or not.
    MoveOn {
        call: u8,
        ending: u8,
        leaves: bool,
    },
    Complete {
        call: u8,
        ending: u8,
    },
    Take {
        call: u8,
    },
    Abandon {
        call: u8,
    },
    Register {
        call: u8,
    },
    Pass {
        us: u16,
    },
    LoseLane {
        lane: u8,
    },
    Harvest,
    CloseBatch,
}

fn operation() -> impl Strategy<Value = Operation> {
    let call = || prop_oneof![3 => 0u8..6, 1 => any::<u8>()];
    prop_oneof![
        6 => (1u16..5000, any::<u8>()).prop_map(|(within_us, waiter)| Operation::Open { within_us, waiter }),
        5 => (call(), any::<u8>()).prop_map(|(call, target)| Operation::Send { call, target }),
        5 => (call(), any::<u8>(), any::<bool>())
            .prop_map(|(call, ending, leaves)| Operation::MoveOn { call, ending, leaves }),
        5 => (call(), any::<u8>()).prop_map(|(call, ending)| Operation::Complete { call, ending }),
        4 => call().prop_map(|call| Operation::Take { call }),
        2 => call().prop_map(|call| Operation::Abandon { call }),
        2 => call().prop_map(|call| Operation::Register { call }),
        3 => (0u16..3000).prop_map(|us| Operation::Pass { us }),
        1 => (0u8..3).prop_map(|lane| Operation::LoseLane { lane }),
        3 => Just(Operation::Harvest),
        1 => Just(Operation::CloseBatch),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nobody,
    Task,
    Batch,
    Forward(u32),
}

#[derive(Clone, Copy, Debug)]
struct Call {
    id: CallId,
    number: u32,
    deadline: Time,
    told: Told,
    sent: Option<Target>,
    ending: Option<Ending>,
    live: bool,
}

/// Counts how often it is woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl WakeTask for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

const LIMIT: u32 = 12;

struct Both {
    table: CallTable<u32>,
    calls: Vec<Call>,
    /// Of each call in `calls`.
    ways: Vec<Way>,
    by_id: HashMap<(u32, u32), usize>,
    now: Time,
    batch: BatchId,
    bell: Arc<Bell>,
    waker: Waker,
}

fn ending(choice: u8) -> Ending {
    match choice % 10 {
        0..=2 => Ending::Reply,
        3 => Ending::Rejected,
        4 => Ending::Failed(Failure::Panicked),
        5 => Ending::Handled(3),
        _ => nothing(choice),
    }
}

/// What an attempt may come to that another one may follow.
fn nothing(choice: u8) -> Ending {
    match choice % 5 {
        0 => Ending::Refused(Refusal::Overloaded),
        1 => Ending::Refused(Refusal::WrongOwner),
        2 => Ending::NotSent(NotSent::LaneLost),
        3 => Ending::NotSent(NotSent::OutOfReach),
        _ => Ending::Unknown(Unknown::LaneLost),
    }
}

/// The request of a call, as its slot keeps it.
fn request(number: u32) -> OwnedFrame {
    let mut frame = OwnedFrame::default();
    frame.encode_empty(Header { key: u64::from(number), ..Header::new(Kind::Request) });
    frame
}

fn lane(index: u8) -> LaneKey {
    LaneKey { index: u32::from(index % 3), generation: 70_000 }
}

fn target(choice: u8) -> Target {
    match choice % 3 {
        0 => Target::Here,
        1 => Target::Shard(u16::from(choice) * 200),
        _ => Target::Lane { lane: lane(choice), offset: u64::MAX - u64::from(choice) },
    }
}

impl Both {
    fn new() -> Self {
        let mut table = CallTable::new(LIMIT);
        let batch = table.batch_open(4);
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(bell.clone());
        let now = Time::from_nanos(1_000_000_000);
        Self { table, calls: Vec::new(), ways: Vec::new(), by_id: HashMap::new(), now, batch, bell, waker }
    }

    fn live(&self) -> usize {
        self.calls.iter().filter(|call| call.live).count()
    }

    /// Among all calls, the newest first.
    fn chosen(&self, choice: u8) -> Option<usize> {
        let count = self.calls.len();
        (count > 0).then(|| count - 1 - usize::from(choice) % count)
    }

    /// What must be said of a call that ends now.
    fn ends(&mut self, place: usize, ending: Ending, wake: Wake<u32>) {
        let call = &mut self.calls[place];
        assert!(call.live && call.ending.is_none(), "a second ending");
        match (call.told, wake) {
            (Told::Nobody | Told::Batch, Wake::Nobody) | (Told::Batch | Told::Task, Wake::Task(_)) => {
                call.ending = Some(ending);
            }
            (Told::Forward(number), Wake::Forward(to, how, frame)) => {
                assert_eq!((number, ending), (to, how));
                check_frame(&frame, call.number, ending);
                call.live = false;
            }
            (told, wake) => panic!("{told:?} was told by {wake:?}"),
        }
    }

    fn open(&mut self, within_us: u16, waiter: u8) {
        let number = self.calls.len() as u32;
        let deadline = self.now + Duration::from_micros(u64::from(within_us));
        let (id, told) = match waiter % 4 {
            0 => (self.table.open(deadline), Told::Nobody),
            1 => (self.table.open_for(deadline, &self.waker), Told::Task),
            2 => (self.table.open_in(deadline, self.batch, number.into()), Told::Batch),
            _ => match self.table.open_forward(deadline, number, None, Choice::Usual) {
                Ok(id) => (Some(id), Told::Forward(number)),
                Err(back) => {
                    assert_eq!(back, number);
                    (None, Told::Nobody)
                }
            },
        };
        assert_eq!(id.is_some(), self.live() < LIMIT as usize, "a slot if there is one");
        let Some(id) = id else { return };
        assert_ne!(id, CallId::default());
        let known = self.by_id.insert((id.slot(), id.generation()), self.calls.len());
        assert_eq!(known, None, "an id names one call");
        self.ways.push(Way::default());
        self.calls.push(Call { id, number, deadline, told, sent: None, ending: None, live: true });
    }

    /// A call leaves, perhaps for another node; who passes it on keeps its request then.
    fn send(&mut self, place: usize, to: u8) {
        let Call { id, number, live, sent, ending, told, deadline, .. } = self.calls[place];
        // Only a call that waits is ever sent.
        if live && sent.is_none() && ending.is_none() {
            assert_eq!(self.table.waiting(id), Some(deadline));
            let way = &mut self.ways[place];
            let passed_on = matches!(told, Told::Forward(_));
            if matches!(target(to), Target::Lane { .. }) {
                way.terms = (if to < 128 { Choice::RoundRobin } else { Choice::Owner }, to.is_multiple_of(2));
                self.table.travels(id, way.terms.0, way.terms.1);
                way.is_kept = passed_on;
            }
            self.table.sent(id, target(to));
            if way.is_kept {
                self.table.keep_request(id, request(number));
            }
            self.calls[place].sent = Some(target(to));
        }
        assert_eq!(self.table.waiting(id), None);
        let over =
            |lane| matches!(self.calls[place].sent, Some(Target::Lane { lane: over, .. }) if over == lane);
        let open = self.calls[place].live && self.calls[place].ending.is_none();
        for key in (0..3).map(lane) {
            assert_eq!(self.table.went_over(id, key), open && over(key));
        }
    }

    /// An attempt has come to nothing. Whether the call may have another one depends on who keeps its request.
    fn move_on(&mut self, place: usize, ending: Ending, leaves: bool) {
        let Call { id, number, live, sent, told, ending: ended, deadline } = self.calls[place];
        let way = &mut self.ways[place];
        let kept = match told {
            // Who made them keeps their requests.
            Told::Task | Told::Batch => true,
            Told::Forward(_) => way.is_kept,
            Told::Nobody => false,
        };
        let expected = sent.filter(|_| live && ended.is_none() && kept);
        let movable = self.table.movable(id);
        assert_eq!(movable.as_ref().map(|movable| movable.target), expected);
        let Some(movable) = movable else { return };
        let terms = (movable.choice, movable.idempotent);
        assert_eq!((terms, movable.deadline, movable.moves), (way.terms, deadline, way.left.len()));
        let leaves = leaves && way.may_leave();
        let node = u64::from(number) * 10 + way.left.len() as u64;
        let kept = self.table.set_out(id, ending, |journey| {
            if leaves {
                journey.leave(node);
            }
        });
        let key = kept.map(|frame| frame.header().map(|header| (header.kind, header.key)));
        assert_eq!(key, way.is_kept.then_some(Some((Kind::Request, u64::from(number)))), "its own request");
        way.goes_on(ending);
        if leaves {
            way.left.push(node);
        }
        self.calls[place].sent = None;
        assert_eq!(self.table.waiting(id), Some(deadline), "it waits again");
        assert!(self.table.is_listed(id) && self.table.enlist(id).is_none(), "in one queue");
        let ticket = self.table.ticket(id);
        let latest = self.ways.iter().filter_map(|way| way.ticket).max();
        self.ways[place].waits(ticket, latest);
        self.check_journey(place);
    }

    /// The table knows of a call's journey what there is to know, and nothing of that of another one.
    fn check_journey(&self, place: usize) {
        let (call, way) = (&self.calls[place], &self.ways[place]);
        let journey = self.table.journey(call.id);
        if !call.live || !way.has_moved() {
            return assert!(journey.is_none(), "it has not moved, or is gone");
        }
        let journey = journey.expect("it has moved");
        assert_eq!(journey.moves(), way.left.len());
        assert!(way.left.iter().all(|&node| journey.has_tried(node)) && !journey.has_tried(7_777_777));
        for last in (0..10).map(ending) {
            assert_eq!(journey.conclude(last), way.outcome(last), "after {way:?}");
        }
    }

    fn complete(&mut self, place: usize, ending: Ending) {
        let Call { id, number, live, ending: before, .. } = self.calls[place];
        let mut filled = false;
        let wake = self.table.complete(id, ending, |frame| {
            filled = true;
            frame.encode_empty(Header { key: u64::from(number), ..Header::new(Kind::Reply) });
        });
        let open = live && before.is_none();
        assert_eq!(wake.is_some(), open, "late answers find nothing, others find their call");
        assert_eq!(filled, open && matches!(ending, Ending::Reply | Ending::Rejected));
        if let Some((outcome, wake)) = wake {
            assert_eq!(outcome, self.ways[place].outcome(ending), "of all its attempts");
            self.ends(place, outcome, wake);
        }
    }

    fn pass(&mut self, us: u16) {
        self.now = self.now + Duration::from_micros(u64::from(us));
        let (now, mut ended) = (self.now, Vec::new());
        self.table.expire(now, |ending, wake, sent| ended.push((ending, wake, sent)));
        // They come in the order of their slots.
        let mut due: Vec<usize> = (0..self.calls.len())
            .filter(|&place| {
                let call = &self.calls[place];
                call.live && call.ending.is_none() && call.deadline <= now
            })
            .collect();
        due.sort_by_key(|&place| self.calls[place].id.slot());
        if ended.is_empty() {
            let late = due.iter().any(|&place| self.calls[place].deadline + EXPIRY_SWEEP <= now);
            assert!(!late, "a deadline was missed by more than a sweep");
            return;
        }
        assert_eq!(ended.len(), due.len(), "all that are due, and no other");
        for (place, (outcome, wake, sent)) in due.into_iter().zip(ended) {
            let call = self.calls[place];
            let ending = self.ways[place].outcome(match call.sent {
                None => Ending::NotSent(NotSent::Deadline),
                Some(_) => Ending::Unknown(Unknown::Deadline),
            });
            assert_eq!(outcome, ending);
            assert_eq!(sent, call.sent.map(|target| (call.id, target)));
            self.ends(place, ending, wake);
        }
    }

    fn lose(&mut self, lost: LaneKey) {
        let ending = Ending::Unknown(Unknown::LaneLost);
        let over = |target: Option<Target>| matches!(target, Some(Target::Lane { lane, .. }) if lane == lost);
        let mut ended = Vec::new();
        let mut under_way = self.table.over(lost);
        self.table.end_where(|target| over(target).then_some(ending), |_, wake| ended.push(wake));
        let mut gone: Vec<usize> = (0..self.calls.len())
            .filter(|&place| {
                let call = &self.calls[place];
                call.live && call.ending.is_none() && over(call.sent)
            })
            .collect();
        gone.sort_by_key(|&place| self.calls[place].id.slot());
        assert_eq!(gone.len(), ended.len());
        for (place, wake) in gone.into_iter().zip(ended) {
            let Some(Target::Lane { offset, .. }) = self.calls[place].sent else { unreachable!() };
            assert_eq!(under_way.remove(0), (self.calls[place].id, offset));
            self.ends(place, self.ways[place].outcome(ending), wake);
        }
        assert!(under_way.is_empty(), "no other call is under way there");
    }

    fn harvest(&mut self) {
        let mut done = Vec::new();
        if !self.table.batch_done(self.batch, &mut done, &self.waker) {
            assert!(self.table.batch_wakes(self.batch, self.waker.clone()).is_none());
        }
        let ended = |call: &&Call| call.live && call.told == Told::Batch && call.ending.is_some();
        assert_eq!(
            done.len(),
            self.calls.iter().filter(ended).count(),
            "each ending of a batch is listed once"
        );
        for index in done {
            let (id, token, ending, frame) = self.table.batch_take(index).expect("what is listed has ended");
            let call = &mut self.calls[token as usize];
            assert_eq!((call.id, call.ending, call.live), (id, Some(ending), true));
            call.live = false;
            if let Some(frame) = frame {
                check_frame(&frame, u32::try_from(token).unwrap(), ending);
                self.table.put_frame(index, frame);
            }
        }
    }

    fn close_batch(&mut self) {
        let mut given_up = Vec::new();
        let _ = self.table.batch_close(self.batch, |id, target| given_up.push((id, target)));
        for call in self.calls.iter_mut().filter(|call| call.live && call.told == Told::Batch) {
            if let (Some(target), None) = (call.sent, call.ending) {
                let place = given_up.iter().position(|&given| given == (call.id, target));
                given_up.swap_remove(place.expect("whoever works on it is told"));
            }
            call.live = false;
        }
        assert!(given_up.is_empty(), "{given_up:?}");
        self.batch = self.table.batch_open(4);
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Open { within_us, waiter } => self.open(within_us, waiter),
            Operation::Send { call, target: to } => {
                if let Some(place) = self.chosen(call) {
                    self.send(place, to);
                }
            }
            Operation::MoveOn { call, ending, leaves } => {
                if let Some(place) = self.chosen(call) {
                    self.move_on(place, nothing(ending), leaves);
                }
            }
            Operation::Complete { call, ending: how } => {
                if let Some(place) = self.chosen(call) {
                    self.complete(place, ending(how));
                }
            }
            Operation::Take { call } => {
                let Some(place) = self.chosen(call) else { return };
                let call = &mut self.calls[place];
                if call.told == Told::Batch {
                    return; // A batch takes its own.
                }
                let taken = self.table.take(call.id);
                assert_eq!(taken.as_ref().map(|(ending, _)| *ending), call.ending.filter(|_| call.live));
                if let Some((ending, frame)) = taken {
                    check_frame(&frame, call.number, ending);
                    call.live = false;
                }
            }
            Operation::Abandon { call } => {
                let Some(place) = self.chosen(call) else { return };
                let call = &mut self.calls[place];
                if matches!(call.told, Told::Batch | Told::Forward(_)) {
                    return; // A batch gives up all its calls at once, and a forwarded call is never given up.
                }
                let on_its_way = call.sent.filter(|_| call.live && call.ending.is_none());
                assert_eq!(self.table.abandon(call.id), on_its_way);
                call.live = false;
            }
            Operation::Register { call } => {
                let Some(place) = self.chosen(call) else { return };
                let call = &mut self.calls[place];
                if matches!(call.told, Told::Nobody | Told::Task) {
                    if !self.table.wakes(call.id, &self.waker) {
                        let _ = self.table.register(call.id, Some(self.waker.clone()));
                    }
                    call.told = Told::Task;
                }
            }
            Operation::Pass { us } => self.pass(us),
            Operation::LoseLane { lane: lost } => self.lose(lane(lost)),
            Operation::Harvest => self.harvest(),
            Operation::CloseBatch => self.close_batch(),
        }
        assert_eq!(self.table.live() as usize, self.live());
        assert!(self.table.live() <= LIMIT);
        let looked_at = (0..self.calls.len()).filter(|&place| place < 4 || self.calls[place].live);
        looked_at.for_each(|place| self.check_journey(place));
    }
}

/// An answer is the one that its call was given.
fn check_frame(frame: &OwnedFrame, number: u32, ending: Ending) {
    if matches!(ending, Ending::Reply | Ending::Rejected) {
        assert_eq!(frame.header().map(|header| header.key), Some(u64::from(number)), "another call's answer");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_table_does_what_the_model_does(operations in proptest::collection::vec(operation(), 0..200)) {
        let mut both = Both::new();
        for operation in &operations {
            both.apply(operation);
        }
        // In the end every call that is still open has its ending, and the table can be emptied.
        both.pass(60_000);
        both.harvest();
        for place in 0..both.calls.len() {
            let call = both.calls[place];
            if call.live {
                assert!(call.ending.is_some(), "open after its deadline");
                both.apply(&Operation::Take { call: (both.calls.len() - 1 - place) as u8 });
            }
        }
        assert!(both.calls.len() > 200 || both.table.live() == 0);
        assert!(both.bell.0.load(Ordering::Relaxed) == 0, "the table hands out wakers, it wakes nobody");
    }
}
