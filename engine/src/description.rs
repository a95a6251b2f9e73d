//! The services of an engine as its builder holds them: with their types erased, checked before anything starts, and bound
//! to fresh instances on each shard.
//!
//! A service's routes are asked for once when the engine starts, to check them and to build the table of routes that all
//! shards share, and once on each shard that it is on, for the handlers of that shard's instance.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use crate::builder::StartError;
use crate::context::ShardId;
use crate::instance::State;
use crate::route::RouteTable;
use crate::service::{BindContext, Declaration, Outline, Routes};
use crate::shard::core::Handlers;
use crate::shard::thread::Services;

/// A service, its types erased.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    shards: Option<Vec<u16>>,
    outline: Box<dyn Fn() -> Outline + Send + Sync>,
    bind: BindService,
}

type BindService = Box<dyn Fn(ShardId, &BindContext, &RouteTable, &mut Handlers) + Send + Sync>;

/// A service's outline, and the shards that it is on.
type Outlined = (Outline, Box<[u16]>);

/// A declaration, and the shards of its service.
pub(crate) type Declared = (Declaration, Box<[u16]>);

impl Service {
    pub(crate) fn new<S, New, Declare>(shards: Option<Vec<u16>>, new: New, routes: Declare) -> Self
    where
        S: 'static,
        New: Fn(ShardId) -> S + Send + Sync + 'static,
        Declare: Fn(Routes<S>) -> Routes<S> + Send + Sync + 'static,
    {
        let routes = Arc::new(routes);
        let outlined = routes.clone();
        let new = Arc::new(new);
        Self {
            name: std::any::type_name::<S>(),
            shards,
            outline: Box::new(move || outlined(Routes::new()).outline()),
            bind: Box::new(move |shard, bind, table, handlers| {
                let Routes { entries, hooks } = routes(Routes::new());
                let new = new.clone();
                let owned = table.owned(entries.iter().map(|(declaration, _)| declaration), shard.0);
                let state = Rc::new(State::new(Box::new(move || new(shard)), hooks, owned));
                handlers.instances.push(state.clone());
                for (declaration, entry) in entries {
                    handlers.add(declaration.type_index, entry(&state, bind.clone()));
                }
            }),
        }
    }

    fn outline_on(&self, shards: u16) -> Result<Outlined, StartError> {
        let mut on: Vec<u16> = match &self.shards {
            None => (0..shards).collect(),
            Some(named) => named.clone(),
        };
        // Named twice is on it once; and however they are named, keys are divided alike.
        on.sort_unstable();
        on.dedup();
        let service = self.name;
        // The user's closure: a panic in it is a start error here as on a shard, where it is asked again.
        let outline = catch_unwind(AssertUnwindSafe(|| (self.outline)())).map_err(|panic| {
            let shard = ShardId(on.first().copied().unwrap_or_default());
            StartError::service_panicked(shard, panic)
        })?;
        if let Some(&shard) = on.iter().find(|&&shard| shard >= shards) {
            return Err(StartError::NoSuchShard { service, shard, last: shards - 1 });
        }
        if on.is_empty() {
            let message = outline.handlers.first().map(|handler| handler.contract.name.to_string());
            let message = message.unwrap_or_else(|| "anything".into());
            return Err(StartError::NoShardNamed { service, message });
        }
        if outline.empty_period {
            return Err(StartError::NoPeriod { service });
        }
        Ok((outline, on.into()))
    }

    /// Whether it makes sense to tell this service which keys it owns, if it wants to be told.
    fn check_hooks(&self, outline: &Outline, routes: &RouteTable) -> Result<(), StartError> {
        let Some(hook) = outline.about_keys else { return Ok(()) };
        let service = self.name;
        match routes.owners(&outline.handlers) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(StartError::HookWithoutKeys { service, hook }),
            Err((first, second)) => Err(StartError::KeysDivided { service, hook, first, second }),
        }
    }
}

/// Checks each service alone and all of them together, and says where each message is handled.
pub(crate) fn check(services: &[Service], shards: u16) -> Result<RouteTable, StartError> {
    let outlined: Vec<Outlined> =
        services.iter().map(|service| service.outline_on(shards)).collect::<Result<_, _>>()?;
    let declared: Vec<Declared> = outlined
        .iter()
        .flat_map(|(outline, on)| outline.handlers.iter().map(|handler| (handler.clone(), on.clone())))
        .collect();
    let routes = RouteTable::build(&declared)?;
    for (service, (outline, _)) in services.iter().zip(&outlined) {
        service.check_hooks(outline, &routes)?;
    }
    Ok(routes)
}

/// What makes the instances of a shard, on that shard.
pub(crate) fn bind_all(services: Vec<Service>, routes: Arc<RouteTable>) -> Services {
    Arc::new(move |shard, bind| {
        let mut handlers = Handlers::default();
        for service in &services {
            if service.shards.as_ref().is_none_or(|named| named.contains(&shard.0)) {
                (service.bind)(shard, bind, &routes, &mut handlers);
            }
        }
        handlers
    })
}
