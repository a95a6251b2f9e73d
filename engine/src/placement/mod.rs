//! Placement: how many shards, on which cores, and why.
//!
//! The default number is what the process may really use at once: the cores of its affinity mask, capped by the whole
//! CPUs of its container's quota ([`quota`]). Which cores is decided by what they share ([`topology`]). What the user
//! says is kept as it is said; where that costs something, the plan carries a warning, which is logged at the start.
//!
//! The plan can be printed: [`Builder::placement`](crate::Builder::placement) before the start,
//! [`Engine::placement`](crate::Engine::placement) after it.

pub(crate) mod quota;
pub(crate) mod topology;
#[cfg(test)]
pub(crate) mod tree;

use std::fmt;
use std::path::Path;

use crate::builder::{Runtime, StartError};
use crate::context::ShardId;
use crate::engine::RuntimeKind;
use crate::limits::SHARDS_MAX;
use crate::placement::quota::Quota;
use crate::placement::topology::{Core, order};
use crate::runtime::drive::Idle;

/// What placement has to go by.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The cores that this process may run on, lowest first.
    pub(crate) cores: Vec<Core>,
    pub(crate) quota: Option<Quota>,
}

impl Machine {
    /// This machine, as this process sees it. Reads a few small files for each core.
    pub(crate) fn here() -> Self {
        let mut usable: Vec<_> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        usable.sort_unstable();
        Self::read(Path::new("/"), &usable)
    }

    pub(crate) fn read(root: &Path, usable: &[usize]) -> Self {
        let cores = usable.iter().map(|&id| Core::read(root, id)).collect();
        Self { cores, quota: Quota::read(root) }
    }

    /// A machine on which nothing is pinned: the simulated one.
    #[cfg(test)]
    pub(crate) fn of_equal_cores(count: usize) -> Self {
        Self { cores: (0..count).map(|id| Core { id, physical: id, l3: None }).collect(), quota: None }
    }
}

/// What the user said about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) shards: Option<usize>,
    pub(crate) cores: Option<Vec<usize>>,
    pub(crate) idle: Idle,
    pub(crate) runtime: Runtime,
}

/// Where one shard runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardPlace {
    /// The shard.
    pub shard: ShardId,
    /// The core that it is pinned to, as the kernel counts (a hardware thread).
    pub core: usize,
    /// The physical core: the lowest number among its hardware threads.
    pub physical: usize,
    /// The level 3 cache: the lowest number among the cores that share it. `None` where the machine does not tell.
    pub l3: Option<usize>,
}

/// How many shards, on which cores, and why. Its `Display` is a small table.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    shards: Vec<ShardPlace>,
    reason: String,
    idle: Idle,
    runtime: Runtime,
    decided: Option<RuntimeKind>,
    quota_cpus: Option<f64>,
    warnings: Vec<String>,
}

impl Placement {
    /// Decides.
    pub(crate) fn choose(wish: &Wish, machine: &Machine) -> Result<Self, StartError> {
        let usable = machine.cores.len();
        let whole = machine.quota.as_ref().map_or(usize::MAX, Quota::whole_cpus);
        let (cores, reason) = match (&wish.cores, wish.shards) {
            (Some(cores), _) => (named(cores, machine)?, "one for each core that was named".to_owned()),
            (None, Some(shards)) if shards <= SHARDS_MAX => {
                let order = order(&machine.cores, shards);
                (order.into_iter().cycle().take(shards).collect(), "as many as were asked for".to_owned())
            }
            (None, Some(shards)) => return Err(StartError::Shards(shards)),
            (None, None) => {
                let shards = usable.min(whole).min(SHARDS_MAX);
                let reason = match &machine.quota {
                    Some(quota) if whole < usable => {
                        format!(
                            "the whole CPUs of the container's quota of {quota}; of cores there are {usable}"
                        )
                    }
                    _ => "one for each core that this process may run on".to_owned(),
                };
                (order(&machine.cores, shards), reason)
            }
        };
        if cores.is_empty() || cores.len() > SHARDS_MAX {
            return Err(StartError::Shards(cores.len()));
        }
        Ok(Self {
            warnings: warnings(&cores, wish.idle, machine.quota.as_ref()),
            shards: (0..).zip(&cores).map(|(shard, core)| place(ShardId(shard), core)).collect(),
            reason,
            idle: wish.idle,
            runtime: wish.runtime,
            decided: None,
            quota_cpus: machine.quota.as_ref().map(|quota| quota.cpus),
        })
    }

    /// The same, now that it is known how the shards wait.
    pub(crate) fn with_runtime(mut self, decided: RuntimeKind) -> Self {
        self.decided = Some(decided);
        self
    }

    pub(crate) fn warn(&self) {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }

    /// Where each shard runs, in the order of the shards.
    #[must_use]
    pub fn shards(&self) -> &[ShardPlace] {
        &self.shards
    }

    /// Why so many shards.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What shards do when there is nothing to do.
    #[must_use]
    pub fn idle(&self) -> Idle {
        self.idle
    }

    /// The CPU time that the container allows, in CPUs; `None` if there is no limit.
    #[must_use]
    pub fn quota_cpus(&self) -> Option<f64> {
        self.quota_cpus
    }

    /// What this placement costs, in words. They are logged when the engine starts.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The cores that the user named; each must be one that this process may run on.
fn named(cores: &[usize], machine: &Machine) -> Result<Vec<Core>, StartError> {
    let find = |&wanted: &usize| {
        let found = machine.cores.iter().find(|core| core.id == wanted);
        found.copied().ok_or(StartError::NoSuchCore { core: wanted })
    };
    cores.iter().map(find).collect()
}

fn place(shard: ShardId, core: &Core) -> ShardPlace {
    ShardPlace { shard, core: core.id, physical: core.physical, l3: core.l3 }
}

fn warnings(cores: &[Core], idle: Idle, quota: Option<&Quota>) -> Vec<String> {
    let mut warnings = Vec::new();
    let shards = cores.len();
    let mut distinct: Vec<_> = cores.iter().map(|core| core.id).collect();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < shards {
        let cores = distinct.len();
        warnings.push(format!(
            "{shards} shards on {cores} core(s): they take turns, and calls between them wait"
        ));
    }
    if let Some(quota) = quota {
        if idle == Idle::Spin {
            warnings.push(format!(
                "spinning shards burn the container's quota of {quota} while they do nothing, and the container \
                 will be throttled; use Idle::Park, or lift the quota"
            ));
        } else if shards > quota.whole_cpus() {
            warnings.push(format!(
                "{shards} shards under a quota of {quota}: under load all of them stand still when it is spent; \
                 {} would not",
                quota.whole_cpus()
            ));
        }
    }
    warnings
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.shards.len();
        writeln!(f, "{count} shard{}: {}", if count == 1 { "" } else { "s" }, self.reason)?;
        let idle = match self.idle {
            Idle::Park => "park",
            Idle::Spin => "spin",
        };
        let runtime = match (self.decided, self.runtime) {
            (Some(decided), _) => decided.to_string(),
            (None, Runtime::Auto) => "io_uring, or epoll if that is not usable; decided at the start".into(),
            (None, Runtime::Glommio) => RuntimeKind::Glommio.to_string(),
            (None, Runtime::Epoll) => RuntimeKind::Epoll.to_string(),
        };
        writeln!(f, "they wait in: {runtime}")?;
        writeln!(f, "shard  core  physical   L3  idle  shares")?;
        for place in &self.shards {
            let l3 = place.l3.map_or_else(|| "?".to_owned(), |l3| l3.to_string());
            let row = format!(
                "{:>5}  {:>4}  {:>8}  {l3:>3}  {idle}  {}",
                place.shard.0,
                place.core,
                place.physical,
                self.shared_by(place)
            );
            writeln!(f, "{}", row.trim_end())?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

impl Placement {
    /// With whom a shard shares what it should have for itself.
    fn shared_by(&self, place: &ShardPlace) -> String {
        let others = || self.shards.iter().filter(|other| other.shard != place.shard);
        if let Some(other) = others().find(|other| other.core == place.core) {
            format!("its core with {}", other.shard)
        } else if let Some(other) = others().find(|other| other.physical == place.physical) {
            format!("its physical core with {}", other.shard)
        } else {
            String::new()
        }
    }
}

#[cfg(test)]
mod tests;
