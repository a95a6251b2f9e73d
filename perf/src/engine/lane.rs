//! `lane/…`: two nodes over loopback TCP, one shard each. The caller's engine is in this process, the answering one in
//! the second.

use std::sync::Arc;

use catga::{Builder, Engine, List};

use crate::engine::driver::How;
use crate::engine::exchange::{Exchange, Frames, Payload, answering};
use crate::engine::{Driven, idle, plan, start};
use crate::frame;
use crate::machine::Cores;
use crate::peer::{self, Peer};
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario, Tried};

/// The word after `serve` that starts [`serve`].
pub(crate) const SERVE: &str = "node";
/// The two nodes.
const CALLER: &str = "caller";
const SERVER: &str = "server";

/// The scenario.
pub(crate) struct Lane {
    name: &'static str,
    how: How,
    pace: Pace,
    idle: Idle,
    floor: Option<&'static str>,
    payload_bytes: Option<usize>,
}

impl Lane {
    /// Spinning; requests of so many payload bytes or else of 64 bytes.
    pub(crate) fn spinning(
        name: &'static str,
        how: How,
        pace: Pace,
        floor: &'static str,
        payload_bytes: Option<usize>,
    ) -> Self {
        Self { name, how, pace, idle: Idle::Spin, floor: Some(floor), payload_bytes }
    }

    /// Parked, with futures.
    pub(crate) fn parked(
        name: &'static str,
        pace: Pace,
        floor: Option<&'static str>,
        payload_bytes: Option<usize>,
    ) -> Self {
        let (how, idle) = (How::Futures, Idle::Park);
        Self { name, how, pace, idle, floor, payload_bytes }
    }

    /// Spinning, with a large payload.
    pub(crate) fn payload(
        name: &'static str,
        how: How,
        in_flight: usize,
        bytes: usize,
        floor: &'static str,
    ) -> Self {
        Self::spinning(name, how, Pace::Closed { in_flight }, floor, Some(bytes))
    }

    fn run_with<E: Exchange>(
        &self,
        exchange: E,
        round: &Round<'_>,
        peer: &mut Peer,
    ) -> Result<RoundResult, Broken> {
        let builder = Engine::builder()
            .cores([Cores::choose().caller])
            .idle(idle(self.idle))
            .cluster(List::of([format!("{SERVER}={}", peer.ready())]).node(CALLER, "127.0.0.1:0"));
        Driven::start(builder, Arc::new(exchange), plan(round, self.how, true))?
            .run(round, std::slice::from_mut(peer))
    }
}

impl Scenario for Lane {
    fn facts(&self) -> Facts {
        let Self { name, pace, idle, floor, payload_bytes, .. } = *self;
        let sweeps = matches!(pace, Pace::Open { .. }) && idle == Idle::Spin;
        Facts { name, family: Family::Lane, pace, idle, floor, sweeps, payload_bytes }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let arguments = [self.idle.name().into(), Cores::choose().server.to_string()];
        let mut peer = Peer::start(SERVE, &arguments)?;
        let mut result = match self.payload_bytes {
            None => self.run_with(Frames, round, &mut peer)?,
            Some(bytes) => self.run_with(Payload { bytes }, round, &mut peer)?,
        };
        // What the floor's frame of this payload has, so that both count the same bytes.
        let frame_bytes = self.payload_bytes.map(frame::request_bytes);
        result.bytes = frame_bytes.map(|bytes| result.requests * bytes as u64);
        Ok(result)
    }
}

/// The second process: `serve node spin|park CORE`. Ends when its parent does.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Broken> {
    let [idle, core] = arguments else {
        return Err(Broken::Peer(format!("{SERVE} takes: spin|park CORE")));
    };
    let core = core.parse().map_err(|_| Broken::Peer(format!("'{core}' is not a number")))?;
    let idle = if idle == Idle::Park.name() { Idle::Park } else { Idle::Spin };
    let nobody = List::of(Vec::<String>::new()).node(SERVER, "127.0.0.1:0");
    let builder = Engine::builder().cores([core]).idle(self::idle(idle)).cluster(nobody);
    stand_by(answering(builder, 0))
}

/// Starts a node, tells the first process where it is, and serves for as long as that lives.
pub(crate) fn stand_by(builder: Builder) -> Result<(), Broken> {
    let engine = start(builder)?;
    let endpoint = engine.endpoint().ok_or_else(|| Broken::Engine("it listens nowhere".into()))?;
    peer::stand_by(&endpoint.to_string()).tried("cannot answer the first process")?;
    loop {
        std::thread::park();
    }
}
