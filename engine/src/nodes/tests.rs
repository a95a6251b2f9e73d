use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::thread;

use catga_discovery::{Incarnation, Node, NodeId, NodeState};

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn view(epoch: u64, names: &[&str]) -> Arc<View> {
    let member = |name: &&str| {
        let id = NodeId::new(name).unwrap();
        let endpoint = std::net::SocketAddr::from(([127, 0, 0, 1], 5001)).into();
        let node = Node { id, incarnation: Incarnation(1), endpoint, shards: 2, handles: Vec::new() };
        Arc::new(Member { node: Arc::new(node), state: NodeState::Up })
    };
    let own = names.first().map(|name| NodeId::new(name).unwrap());
    Arc::new(View::new(epoch, own.as_ref(), names.iter().map(member).collect(), epoch == 1))
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn read(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn poll(watch: &mut Watch, waker: &Waker) -> Poll<Option<u64>> {
    let news = watch.poll_next(&mut Context::from_waker(waker));
    news.map(|news| news.map(|nodes| nodes.epoch()))
}

fn wakers(board: &Board) -> usize {
    board.lock().wakers.len()
}

#[test]
fn nodes_are_found_by_id_and_print_line_by_line() {
    let board = Arc::new(Board::default());
    assert!(board.nodes().is_empty() && board.nodes().own().is_none() && board.nodes().epoch() == 0);
    board.put(view(1, &["b", "a", "c"]));
    let nodes = board.nodes();
    assert_eq!((nodes.len(), nodes.epoch(), nodes.is_forming()), (3, 1, true));
    let ids: Vec<&str> = nodes.iter().map(|member| member.node.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    for id in ids {
        assert_eq!(nodes.find(id).unwrap().node.id.as_str(), id);
    }
    assert!(nodes.find("d").is_none() && nodes.find("no id").is_none());
    assert_eq!(nodes.own().unwrap().node.id.as_str(), "b");
    assert_eq!(nodes.to_string().lines().next(), Some("a at 127.0.0.1:5001, 2 shards, 0 messages, up"));
}

#[test]
fn a_watch_sees_the_newest_after_what_it_saw_and_nothing_twice() {
    let board = Arc::new(Board::default());
    board.put(view(1, &["a"]));
    let mut watch = board.watch();
    assert_eq!(watch.nodes().epoch(), 1);
    assert_eq!(poll(&mut watch, Waker::noop()), Poll::Pending);
    board.put(view(2, &["a", "b"]));
    board.put(view(3, &["a", "b", "c"]));
    assert_eq!(poll(&mut watch, Waker::noop()), Poll::Ready(Some(3)));
    assert_eq!(poll(&mut watch, Waker::noop()), Poll::Pending);
    assert!(watch.next_within(Duration::ZERO).is_none() && !watch.is_ended());
    board.put(view(4, &["a"]));
    board.end();
    assert_eq!(poll(&mut watch, Waker::noop()), Poll::Ready(Some(4)), "the last change comes before the end");
    assert_eq!(poll(&mut watch, Waker::noop()), Poll::Ready(None));
    assert!(watch.next_within(SOON).is_none() && watch.is_ended());
    assert_eq!(watch.nodes().len(), 1);
}

#[test]
fn a_watch_leaves_one_waker_at_most_and_takes_it_along() {
    let board = Arc::new(Board::default());
    let (mut one, mut other) = (board.watch(), board.watch());
    let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
    for _ in 0..100 {
        assert!(poll(&mut one, &first.clone().into()).is_pending());
    }
    assert!(poll(&mut one, &second.clone().into()).is_pending());
    assert!(poll(&mut other, &second.clone().into()).is_pending());
    assert_eq!(wakers(&board), 2);
    assert_eq!(Arc::strong_count(&first), 1, "a waker that was replaced is gone");
    drop(other);
    assert_eq!(wakers(&board), 1);
    board.put(view(1, &["a"]));
    assert_eq!((first.read(), second.read(), wakers(&board)), (0, 1, 0));
    board.put(view(2, &["a"]));
    assert_eq!(second.read(), 1, "who does not wait is not woken");
    drop(one);
    assert_eq!(Arc::strong_count(&second), 1);
}

#[test]
fn a_future_that_is_dropped_loses_nothing() {
    let board = Arc::new(Board::default());
    let mut watch = board.watch();
    let count = Arc::new(Count::default());
    {
        let mut next = std::pin::pin!(watch.next());
        let waker = count.clone().into();
        assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        board.put(view(1, &["a"]));
        assert_eq!(count.read(), 1);
    }
    assert_eq!(pollster::block_on(watch.next()).map(|nodes| nodes.epoch()), Some(1));
}

#[test]
fn watches_on_many_threads_all_see_the_last_view_and_then_the_end() {
    let board = Arc::new(Board::default());
    let watching: Vec<_> = (0..6)
        .map(|number| {
            let mut watch = board.watch();
            thread::spawn(move || {
                let mut last = 0;
                loop {
                    let news = if number % 2 == 0 {
                        watch.next_within(SOON)
                    } else {
                        pollster::block_on(watch.next())
                    };
                    let Some(nodes) = news else { return (last, watch.is_ended()) };
                    assert!(nodes.epoch() > last);
                    last = nodes.epoch();
                }
            })
        })
        .collect();
    for epoch in 1..=200 {
        board.put(view(epoch, &["a"]));
    }
    board.end();
    for thread in watching {
        assert_eq!(thread.join().unwrap(), (200, true));
    }
    assert_eq!(wakers(&board), 0);
    assert_eq!(Arc::strong_count(&board), 1);
}

#[test]
fn a_waker_that_panics_keeps_nobody_else_from_waking() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker's own fault");
        }
    }
    let board = Arc::new(Board::default());
    let count = Arc::new(Count::default());
    let mut watches: Vec<Watch> = (0..8).map(|_| board.watch()).collect();
    for (number, watch) in watches.iter_mut().enumerate() {
        let waker = if number % 2 == 0 { Arc::new(Bomb).into() } else { count.clone().into() };
        assert!(poll(watch, &waker).is_pending());
    }
    board.put(view(1, &["a"]));
    assert_eq!(count.read(), 4);
}

/// The last count of a waker may be that of its task, which may own a watch: it was dropped under the lock that it takes.
#[test]
fn a_waker_that_owns_a_watch_can_be_replaced_and_dropped() {
    struct Task(#[allow(dead_code, reason = "to be dropped")] Watch);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let board = Arc::new(Board::default());
    let mut watch = board.watch();
    assert!(poll(&mut watch, &Arc::new(Task(board.watch())).into()).is_pending());
    assert!(poll(&mut watch, &Arc::new(Task(board.watch())).into()).is_pending(), "replaced");
    board.put(view(1, &["a"]));
    assert_eq!(poll(&mut watch, &Arc::new(Task(board.watch())).into()), Poll::Ready(Some(1)));
    assert!(poll(&mut watch, &Arc::new(Task(board.watch())).into()).is_pending());
    drop(watch);
    assert_eq!(Arc::strong_count(&board), 1);
}
