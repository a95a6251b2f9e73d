//! What one shard's thread does: it pins itself, makes its sockets and its services, reports, and runs the loop.
//!
//! The starter waits for exactly one report from each thread. A report that is lost on the way, by a panic say, is
//! itself a report: else a start could wait for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use crate::builder::StartError;
use crate::context::ShardId;
use crate::engine::RuntimeKind;
use crate::runtime::drive::{Idle, drive};
use crate::runtime::sockets::{Listener, Sockets};
use crate::service::BindContext;
use crate::shard::core::Handlers;
use crate::shard::{Seed, Shard};

/// Binds the services of one shard to fresh instances.
pub(crate) type Services = Arc<dyn Fn(ShardId, &BindContext) -> Handlers + Send + Sync>;

/// The duty to say once whether a shard has started.
pub(crate) struct Report(Option<mpsc::Sender<Result<(), StartError>>>);

impl Report {
    pub(crate) fn new(to: mpsc::Sender<Result<(), StartError>>) -> Self {
        Self(Some(to))
    }

    fn send(&mut self, outcome: Result<(), StartError>) {
        match self.0.take() {
            Some(to) => {
                // If the starter has given up on another shard's error, this one is of no interest.
                let _ = to.send(outcome);
            }
            None => {
                if let Err(error) = outcome {
                    tracing::error!(%error, "a shard ended after it had started");
                }
            }
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.send(Err(StartError::ShardDied));
        }
    }
}

/// What one shard's thread is started with.
pub(crate) struct ShardThread {
    pub(crate) name: String,
    pub(crate) seed: Seed,
    pub(crate) services: Services,
    pub(crate) listener: Option<Listener>,
    pub(crate) cpu: usize,
    pub(crate) idle: Idle,
    pub(crate) runtime: RuntimeKind,
    pub(crate) report: Report,
}

impl ShardThread {
    /// Runs the shard until it has stopped.
    pub(crate) fn run(self) {
        let Self { name, seed, services, listener, cpu, idle, runtime, mut report } = self;
        let sockets = match Sockets::new(&seed.doorbell, listener) {
            Ok(sockets) => sockets,
            Err(error) => return report.send(Err(StartError::Sockets(error))),
        };
        let epoll = sockets.epoll();
        let make = |report: &mut Report| {
            let (id, bind) = (seed.id, seed.bind.clone());
            let made = catch_unwind(AssertUnwindSafe(|| {
                Shard::new(seed, |_| services(id, &bind), Box::new(sockets))
            }));
            match made {
                Ok(shard) => {
                    report.send(Ok(()));
                    Some(shard)
                }
                Err(panic) => {
                    report.send(Err(StartError::service_panicked(id, panic)));
                    None
                }
            }
        };
        match runtime {
            RuntimeKind::Epoll => {
                if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
                    return report.send(Err(StartError::NoSuchCore { core: cpu }));
                }
                if let Some(shard) = make(&mut report) {
                    drive(shard, idle, &epoll);
                }
            }
            #[cfg(feature = "glommio")]
            RuntimeKind::Glommio => {
                let ran = crate::runtime::glommio::run(cpu, &name, || {
                    if let Some(shard) = make(&mut report) {
                        drive(shard, idle, &epoll);
                    }
                });
                if let Err(error) = ran {
                    report.send(Err(StartError::Runtime(format!("{name}, on core {cpu}: {error}"))));
                }
            }
            #[cfg(not(feature = "glommio"))]
            RuntimeKind::Glommio => {
                report.send(Err(StartError::Runtime(format!("{name}: built without glommio"))));
            }
        }
    }
}
