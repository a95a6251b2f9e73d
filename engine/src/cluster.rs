//! A cluster from a list of addresses: each node keeps lanes to all others, and lanes decide who is alive.

use std::sync::Arc;

use catga_codec::Contract;
use catga_discovery::{Endpoint, Incarnation, NodeId};

use crate::builder::StartError;
use crate::lane::greeting::{Greeting, Offer, PROTOCOL_VERSION};
use crate::lane::io::{LaneSetup, Peer};
use crate::limits::{LANE_CALLS_MAX, LANE_FRAME_BYTES_MAX};
use crate::runtime::sockets::{Listener, listen, local_endpoint};

/// The nodes of a cluster, by address; this node among them or not.
///
/// ```
/// use catga::List;
/// let cluster = List::of(["a=127.0.0.1:5001", "b=127.0.0.1:5002"]).node("a", "127.0.0.1:5001");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct List {
    nodes: Vec<String>,
    id: String,
    endpoint: String,
    name: String,
    insecure: bool,
}

impl List {
    /// The nodes, each as `id=address:port` or, for those on this machine, `id=unix:/path`.
    pub fn of<T: Into<String>>(nodes: impl IntoIterator<Item = T>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            id: String::new(),
            endpoint: "127.0.0.1:0".into(),
            name: "catga".into(),
            insecure: false,
        }
    }

    /// This node: its id, unique in the cluster, and the endpoint that it listens on and that others reach it at:
    /// `address:port`, or `unix:/path` for a socket in the file system. Its file may be used by its owner only. One that a
    /// process left behind is replaced; one behind which a process listens is not. It is removed when the engine stops.
    pub fn node(mut self, id: impl Into<String>, endpoint: impl Into<String>) -> Self {
        self.id = id.into();
        self.endpoint = endpoint.into();
        self
    }

    /// The name of the cluster. Nodes of other clusters are turned away. Default: `catga`.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Allows an endpoint off loopback although lanes are not authenticated: the network is closed to others.
    pub fn insecure(mut self) -> Self {
        self.insecure = true;
        self
    }

    /// Checks all of it, and listens.
    pub(crate) fn open(
        &self,
        contracts: &[Contract],
        shards: u16,
    ) -> Result<(Listener, LaneSetup), StartError> {
        let setup = self.setup(contracts, shards)?;
        let endpoint = parse(&self.endpoint)?;
        if let Endpoint::Tcp(address) = endpoint
            && !endpoint.is_loopback()
            && !self.insecure
        {
            return Err(StartError::OffLoopback { endpoint: address });
        }
        let listener = listen(&endpoint).map_err(StartError::Listen)?;
        let bound = local_endpoint(&listener).map_err(StartError::Listen)?;
        tracing::info!(node = self.id, endpoint = %bound, "listening");
        Ok((listener, setup))
    }

    /// What this node says of itself, and whom it dials.
    pub(crate) fn setup(&self, contracts: &[Contract], shards: u16) -> Result<LaneSetup, StartError> {
        let node = NodeId::new(&self.id).map_err(|error| StartError::Cluster(error.to_string()))?;
        let mut peers: Vec<Peer> = Vec::new();
        for entry in &self.nodes {
            let (id, endpoint) = entry.split_once('=').ok_or_else(|| {
                StartError::Cluster(format!("`{entry}` is not of the form id=address:port or id=unix:/path"))
            })?;
            let id = NodeId::new(id).map_err(|error| StartError::Cluster(error.to_string()))?;
            if peers.iter().any(|peer| peer.id == id) {
                return Err(StartError::Cluster(format!("the node `{id}` is listed twice")));
            }
            peers.push(Peer { id, endpoint: parse(endpoint)? });
        }
        peers.retain(|peer| peer.id != node);
        let greeting = Greeting {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            cluster: self.name.as_str().into(),
            node,
            incarnation: incarnation(),
            shard: 0,
            shards,
            wanted_shard: 0,
            frame_bytes_max: LANE_FRAME_BYTES_MAX,
            calls_max: LANE_CALLS_MAX,
            nonce: [0; 16],
            offers: contracts.iter().map(|contract| Offer::of(contract, true)).collect::<Vec<_>>().into(),
        };
        greeting.encode().map_err(|error| StartError::Cluster(error.to_string()))?;
        Ok(LaneSetup { greeting, peers: Arc::from(peers) })
    }
}

fn parse(endpoint: &str) -> Result<Endpoint, StartError> {
    endpoint.parse().map_err(|error: catga_discovery::EndpointError| StartError::Cluster(error.to_string()))
}

/// Later starts of a node have greater numbers.
fn incarnation() -> Incarnation {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Incarnation(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX))
}
