//! A cluster from a list of addresses: each node keeps lanes to all others, and lanes decide who is alive.
//!
//! The list is written down ([`List::of`]), or it is what a name resolves to, asked for again and again ([`List::dns`]).
//! Everything that people wrote is checked here, before a thread is started, and an error names what is wrong.

use std::net::SocketAddr;

use catga_codec::Contract;
use catga_discovery::{Endpoint, Incarnation, Node, NodeId, Target};

use crate::agent::{Dns, SystemResolver};
use crate::builder::StartError;
use crate::lane::greeting::{Greeting, Offer, PROTOCOL_VERSION};
use crate::lane::key::{ClusterKey, KeyLength};
use crate::lane::lanes::LaneSetup;
use crate::limits::{LANE_CALLS_MAX, LANE_FRAME_BYTES_MAX};
use crate::runtime::sockets::{Listener, listen, local_endpoint};

/// The nodes of a cluster, by address; this node among them or not.
///
/// Nodes that are in nobody's list may join as well: who opens a lane is a member for as long as it has one.
///
/// ```
/// use catga::List;
/// let cluster = List::of(["a=127.0.0.1:5001", "b=127.0.0.1:5002"])
///     .key("what these nodes have and nobody else")
///     .node("a", "127.0.0.1:5001");
/// let cluster = List::dns("orders:5001").node("a", "10.0.0.1:5001").insecure();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct List {
    source: Source,
    id: String,
    endpoint: String,
    announced: Option<String>,
    name: String,
    key: Result<ClusterKey, KeyLength>,
    insecure: bool,
}

/// Where the addresses of the other nodes come from.
#[derive(Clone, Debug)]
enum Source {
    Written(Vec<String>),
    Name(String),
}

/// A node's place in its cluster, checked.
pub(crate) struct Place {
    pub(crate) lanes: LaneSetup,
    pub(crate) own: Node,
    pub(crate) targets: Vec<Target>,
    pub(crate) dns: Option<Dns>,
}

impl Place {
    /// What the list has of this node, if that is not where it says that it is reached.
    fn listed_elsewhere(&self) -> Option<&Target> {
        let listed = self.targets.iter().find(|target| target.id.as_ref() == Some(&self.own.id));
        listed.filter(|target| target.endpoint != self.own.endpoint)
    }
}

impl List {
    /// The nodes, each as `id=address:port` or, for those on this machine, `id=unix:/path`.
    pub fn of<T: Into<String>>(nodes: impl IntoIterator<Item = T>) -> Self {
        Self::from(Source::Written(nodes.into_iter().map(Into::into).collect()))
    }

    /// The nodes are all addresses behind `name`, which is `host:port`: the name is resolved every 30 s, and every 5 s
    /// while a node is missing or this one knows nobody else. This node's own address may be among them. A lookup that
    /// fails is logged and counted; the last answer stands.
    pub fn dns(name: impl Into<String>) -> Self {
        Self::from(Source::Name(name.into()))
    }

    fn from(source: Source) -> Self {
        let (id, endpoint) = (String::new(), "127.0.0.1:0".into());
        let (name, key) = ("catga".into(), Ok(ClusterKey::none()));
        Self { source, id, endpoint, announced: None, name, key, insecure: false }
    }

    /// This node: its id, unique in the cluster, and the endpoint that it listens on and that others reach it at.
    pub fn node(mut self, id: impl Into<String>, endpoint: impl Into<String>) -> Self {
        self.id = id.into();
        self.endpoint = endpoint.into();
        self
    }

    /// Where others reach this node, if that is not where it listens: behind a forwarded port, or when it listens on all
    /// addresses (`0.0.0.0:5001`), which nobody can dial. Port 0 stands for the port that it listens on.
    ///
    /// ```
    /// # use catga::List;
    /// let cluster = List::dns("orders:5001").node("a", "0.0.0.0:5001").announce("10.0.0.1:5001").insecure();
    /// ```
    pub fn announce(mut self, endpoint: impl Into<String>) -> Self {
        self.announced = Some(endpoint.into());
        self
    }

    /// The name of the cluster. Nodes of other clusters are turned away. Default: `catga`.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What all nodes of the cluster have and nobody else: text or bytes, from 16 bytes, at random, to 1024. Two nodes
    /// prove to each other that they have it before a lane between them opens, without sending it; whoever cannot is turned
    /// away, and counted in `lanes_unproven`. It is never logged or shown. All nodes have one key, or none has.
    ///
    /// It keeps strangers out. It does not encrypt: whoever can read or alter the traffic between two nodes must be
    /// kept from that by the network.
    ///
    /// ```
    /// # use catga::List;
    /// // `head -c 32 /dev/urandom | base64` makes one.
    /// let key = std::env::var("CLUSTER_KEY").unwrap_or("3q2+7wABAgMEBQYHCAkKCwwNDg8=".into());
    /// let cluster = List::of(["a=10.0.0.1:5001", "b=10.0.0.2:5001"]).key(key).node("a", "10.0.0.1:5001");
    /// assert!(!format!("{cluster:?}").contains("3q2+7"));
    /// ```
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = ClusterKey::new(key.as_ref());
        self
    }

    /// Allows an endpoint off loopback although the cluster has no key: the network is closed to others.
    pub fn insecure(mut self) -> Self {
        self.insecure = true;
        self
    }

    /// Checks all of it, and opens the port.
    pub(crate) fn open(&self, contracts: &[Contract], shards: u16) -> Result<(Listener, Place), StartError> {
        // All that is written is looked at before anything is opened.
        self.place(contracts, shards, self.own_endpoint()?)?;
        let endpoint = self.own_endpoint()?;
        self.keeps_strangers_out(&endpoint)?;
        // What is announced elsewhere is reached from there, by whatever forwards it.
        self.keeps_strangers_out(&self.reached_at(endpoint.clone())?)?;
        let listener = listen(&endpoint).map_err(StartError::Listen)?;
        let bound = local_endpoint(&listener).map_err(StartError::Listen)?;
        tracing::info!(node = self.id, endpoint = %bound, "listening");
        let place = self.place(contracts, shards, self.reached_at(bound)?)?;
        if let Some(listed) = place.listed_elsewhere() {
            tracing::warn!(
                listed = %listed.endpoint,
                told = %place.own.endpoint,
                "the list has this node at another endpoint than it tells others to reach it at; give the listed one in `node`, \
                 or in `announce` if it listens elsewhere"
            );
        }
        Ok((listener, place))
    }

    fn keeps_strangers_out(&self, endpoint: &Endpoint) -> Result<(), StartError> {
        match endpoint.address() {
            Some(address) if !(endpoint.is_loopback() || self.is_keyed() || self.insecure) => {
                Err(StartError::OffLoopback { endpoint: address })
            }
            _ => Ok(()),
        }
    }

    /// Where others reach a node that listens there.
    fn reached_at(&self, bound: Endpoint) -> Result<Endpoint, StartError> {
        let endpoint = match &self.announced {
            None => bound,
            Some(text) => {
                let wrong =
                    |error| StartError::Cluster(format!("the announced endpoint of this node: {error}"));
                match (text.parse().map_err(wrong)?, bound.address()) {
                    (Endpoint::Tcp(address), Some(bound)) if address.port() == 0 => {
                        Endpoint::Tcp(SocketAddr::new(address.ip(), bound.port()))
                    }
                    (endpoint, _) => endpoint,
                }
            }
        };
        if endpoint.address().is_some_and(|address| address.ip().is_unspecified()) {
            return Err(StartError::Cluster(format!(
                "the endpoint `{endpoint}` of this node: nobody can dial it; give the address at which other nodes reach this \
                 one, in `node` or in `announce`"
            )));
        }
        Ok(endpoint)
    }

    /// What this node says of itself, where it is reached, and whom it looks for.
    pub(crate) fn place(
        &self,
        contracts: &[Contract],
        shards: u16,
        endpoint: Endpoint,
    ) -> Result<Place, StartError> {
        let key = self.key.clone().map_err(|KeyLength { bytes }| StartError::ClusterKey { bytes })?;
        let own = Node {
            id: self.own_id()?,
            incarnation: incarnation(),
            endpoint,
            shards,
            handles: contracts
                .iter()
                .flat_map(|contract| contract.accepts().map(|print| (contract.id, print)))
                .collect(),
        };
        let greeting = Greeting {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            cluster: self.name.as_str().into(),
            node: own.id.clone(),
            incarnation: own.incarnation,
            shard: 0,
            shards,
            wanted_shard: 0,
            frame_bytes_max: LANE_FRAME_BYTES_MAX,
            calls_max: LANE_CALLS_MAX,
            nonce: [0; 16], // each lane has its own
            keyed: self.is_keyed(),
            endpoint: own.endpoint.to_string().into(),
            offers: contracts.iter().map(|contract| Offer::of(contract, true)).collect::<Vec<_>>().into(),
        };
        greeting.encode().map_err(|error| StartError::Cluster(error.to_string()))?;
        Ok(Place { lanes: LaneSetup { greeting, key }, own, targets: self.targets()?, dns: self.resolved()? })
    }

    fn is_keyed(&self) -> bool {
        self.key.as_ref().is_ok_and(ClusterKey::is_set)
    }

    /// The nodes that are written down, each once. This one may be among them, under its own id.
    pub(crate) fn targets(&self) -> Result<Vec<Target>, StartError> {
        let Source::Written(entries) = &self.source else { return Ok(Vec::new()) };
        let (own, here) = (self.own_id()?, self.own_endpoint()?);
        let announced = self.announced.as_ref().and_then(|text| text.parse::<Endpoint>().ok());
        let mut targets: Vec<Target> = Vec::with_capacity(entries.len());
        for entry in entries {
            let wrong =
                |what: String| StartError::Cluster(format!("the entry `{entry}` of the list: {what}"));
            let target: Target = entry.parse().map_err(|error| wrong(format!("{error}")))?;
            let nowhere = |address: SocketAddr| address.port() == 0 || address.ip().is_unspecified();
            if target.id.as_ref() != Some(&own) && target.endpoint.address().is_some_and(nowhere) {
                return Err(wrong(
                    "nobody can dial it; give the address and port at which that node is reached".into(),
                ));
            }
            let is_here = target.endpoint == here || Some(&target.endpoint) == announced.as_ref();
            if is_here && target.id.as_ref() != Some(&own) {
                return Err(wrong(format!("this is the endpoint of this node, whose id is `{own}`")));
            }
            if let Some(other) = targets.iter().find(|other| other.id == target.id) {
                return Err(wrong(format!("this id is listed twice, as {other} too")));
            }
            if let Some(other) = targets.iter().find(|other| other.endpoint == target.endpoint) {
                return Err(wrong(format!("this endpoint is listed twice, as {other} too")));
            }
            targets.push(target);
        }
        Ok(targets)
    }

    fn resolved(&self) -> Result<Option<Dns>, StartError> {
        let Source::Name(name) = &self.source else { return Ok(None) };
        let is_whole = name.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(char::is_whitespace)
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !is_whole {
            let form = "is not of the form host:port, such as orders:5001";
            return Err(StartError::Cluster(format!("the name `{name}` {form}")));
        }
        Ok(Some(Dns { name: name.clone(), resolver: Box::new(SystemResolver::default()) }))
    }

    fn own_id(&self) -> Result<NodeId, StartError> {
        let wrong = |error| StartError::Cluster(format!("the id `{}` of this node: {error}", self.id));
        NodeId::new(&self.id).map_err(wrong)
    }

    fn own_endpoint(&self) -> Result<Endpoint, StartError> {
        self.endpoint
            .parse()
            .map_err(|error| StartError::Cluster(format!("the endpoint of this node: {error}")))
    }
}

/// Later starts of a node have greater numbers.
fn incarnation() -> Incarnation {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Incarnation(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(list: List) -> String {
        match list.own_endpoint().and_then(|endpoint| list.place(&[], 1, endpoint)).map(|_| ()) {
            Err(StartError::Cluster(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn written(entries: &[&str]) -> List {
        List::of(entries.iter().copied()).node("a", "127.0.0.1:5001")
    }

    #[test]
    fn a_list_names_its_nodes_by_address_or_by_socket() {
        let list = written(&["a=127.0.0.1:5001", "b=[::1]:5002", "c=unix:/run/c.sock"]);
        let targets: Vec<String> = list.targets().unwrap().iter().map(Target::to_string).collect();
        assert_eq!(targets, ["a at 127.0.0.1:5001", "b at [::1]:5002", "c at unix:/run/c.sock"]);
        assert!(list.resolved().unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_with_a_list_is_said_with_the_entry() {
        for (entries, parts) in [
            (&["127.0.0.1:5001"][..], &["`127.0.0.1:5001`", "id=address:port"][..]),
            (&["b!=127.0.0.1:1"], &["`b!=127.0.0.1:1`", "must not contain '!'"]),
            (&["b=orders:5001"], &["`b=orders:5001`", "not of the form address:port"]),
            (&["b=unix:b.sock"], &["`b=unix:b.sock`", "absolute"]),
            (&["b=127.0.0.1:1", "b=127.0.0.1:2"], &["`b=127.0.0.1:2`", "twice", "b at 127.0.0.1:1"]),
            (&["b=127.0.0.1:1", "c=127.0.0.1:1"], &["`c=127.0.0.1:1`", "twice", "b at 127.0.0.1:1"]),
            (&["b=127.0.0.1:5001"], &["`b=127.0.0.1:5001`", "this node", "`a`"]),
            (&["b=127.0.0.1:0"], &["`b=127.0.0.1:0`", "nobody can dial it"]),
            (&["b=0.0.0.0:5002"], &["`b=0.0.0.0:5002`", "nobody can dial it"]),
        ] {
            let text = refusal(written(entries));
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        assert!(refusal(List::of(["b=127.0.0.1:1"])).contains("must not be empty"));
        assert!(refusal(written(&[]).node("a", "here")).contains("`here`"));
    }

    #[test]
    fn an_endpoint_that_nobody_can_dial_is_not_announced() {
        let said = |list: List| match list.insecure().open(&[], 1).map(|_| ()) {
            Err(StartError::Cluster(text)) => text,
            other => panic!("{other:?}"),
        };
        for endpoint in ["0.0.0.0:0", "[::]:0"] {
            let text = said(List::of(Vec::<String>::new()).node("a", endpoint));
            assert!(text.contains(endpoint) && text.contains("`announce`"), "{text}");
            let text = said(written(&[]).announce(endpoint));
            assert!(text.contains("nobody can dial it"), "{text}");
        }
        assert!(said(written(&[]).announce("orders")).contains("`orders`"));
        let text = said(written(&["b=10.0.0.1:5001"]).node("a", "127.0.0.1:0").announce("10.0.0.1:5001"));
        assert!(text.contains("this is the endpoint of this node"), "{text}");
    }

    #[test]
    fn a_node_that_is_listed_elsewhere_than_it_is_reached_is_noticed() {
        let elsewhere = |list: List| {
            let endpoint = list.reached_at(list.own_endpoint().unwrap()).unwrap();
            list.place(&[], 1, endpoint).unwrap().listed_elsewhere().map(Target::to_string)
        };
        assert_eq!(elsewhere(written(&["a=127.0.0.1:5001", "b=127.0.0.1:5002"])), None);
        assert_eq!(elsewhere(written(&["b=127.0.0.1:5002"])), None, "a node need not be in its own list");
        let wrong = written(&["a=10.0.0.1:5001", "b=10.0.0.2:5001"]);
        assert_eq!(elsewhere(wrong.clone()).as_deref(), Some("a at 10.0.0.1:5001"));
        assert_eq!(elsewhere(wrong.announce("10.0.0.1:5001")), None);
    }

    #[test]
    fn a_name_is_a_host_and_a_port() {
        let named = |name: &str| List::dns(name).node("a", "127.0.0.1:5001");
        for name in ["orders:5001", "orders.svc.cluster.local:1"] {
            assert_eq!(named(name).resolved().unwrap().unwrap().name, name);
            assert!(named(name).targets().unwrap().is_empty());
        }
        for name in ["", "orders", "orders:", ":5001", "orders:0", "orders:65536", "two words:1"] {
            let text = refusal(named(name));
            assert!(text.contains(&format!("`{name}`")) && text.contains("host:port"), "{text}");
        }
    }

    #[test]
    fn a_place_says_where_it_listens_and_what_the_node_serves() {
        let (listener, place) = List::dns("orders:5001").node("a", "127.0.0.1:0").open(&[], 3).unwrap();
        assert_eq!(place.own.endpoint, local_endpoint(&listener).unwrap());
        assert_ne!(place.own.endpoint.address().unwrap().port(), 0);
        assert_eq!((place.own.id.as_str(), place.own.shards), ("a", 3));
        assert_eq!(place.own.incarnation, place.lanes.greeting.incarnation);
        let everywhere = List::of(Vec::<String>::new()).node("a", "0.0.0.0:0");
        let off = everywhere.clone().announce("127.0.0.1:0").open(&[], 1);
        assert!(matches!(off, Err(StartError::OffLoopback { .. })));
        let forwarded = List::of(Vec::<String>::new()).node("a", "127.0.0.1:0").announce("10.0.0.1:5001");
        assert!(matches!(forwarded.open(&[], 1), Err(StartError::OffLoopback { .. })));
        let (listener, place) = everywhere.insecure().announce("10.0.0.1:0").open(&[], 1).unwrap();
        let port = local_endpoint(&listener).unwrap().address().unwrap().port();
        assert_eq!(place.own.endpoint.to_string(), format!("10.0.0.1:{port}"));
        assert_eq!(&*place.lanes.greeting.endpoint, format!("10.0.0.1:{port}"));
    }
}
