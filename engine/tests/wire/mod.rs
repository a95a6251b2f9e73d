//! A peer made by hand: it speaks the bytes of a lane without any of the engine's code, so that it can also lie.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use catga_codec::{CallId, Contract, Header, Kind, Message};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// An endpoint that only who holds the listener takes, and where nobody answers before that.
pub(crate) fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    (listener, endpoint)
}

const HEADER: usize = 48;

/// The size of a proof.
pub(crate) const PROOF: usize = 32;

/// One end of a connection to an engine.
pub(crate) struct Peer {
    stream: TcpStream,
    /// The key by which it will prove itself, and what it said in its Hello, until it was welcomed.
    hello: Option<(Vec<u8>, Vec<u8>)>,
}

/// What the engine sent: the header, and what follows it.
pub(crate) type Frame = (Header, Vec<u8>);

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A frame as it travels.
pub(crate) fn framed(header: Header, payload: &[u8]) -> Vec<u8> {
    let length = HEADER + payload.len();
    let mut bytes = vec![0; length.next_multiple_of(16)];
    Header { length: length as u32, ..header }.write(&mut bytes);
    bytes[HEADER..length].copy_from_slice(payload);
    bytes
}

/// A frame of this message.
pub(crate) fn archived<M: Message>(header: Header, message: &M) -> Vec<u8> {
    let mut frame = catga_codec::OwnedFrame::with_capacity(4096);
    frame.encode(header, message).unwrap();
    framed(Header { message: M::ID, ..header }, &frame.bytes()[HEADER..])
}

/// Where a node says that it is: a shard of so many, and its endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) shard: u16,
    pub(crate) shards: u16,
    pub(crate) endpoint: &'a str,
}

/// A greeting, as the protocol's first page describes it, of a node that has a cluster key or none.
pub(crate) fn greeting(cluster: &str, node: &str, keyed: bool, offers: &[Contract]) -> Vec<u8> {
    greeting_from(Place { shard: 0, shards: 1, endpoint: "127.0.0.1:1" }, cluster, node, keyed, offers)
}

/// A greeting from a certain shard and endpoint.
pub(crate) fn greeting_from(
    place: Place<'_>,
    cluster: &str,
    node: &str,
    keyed: bool,
    offers: &[Contract],
) -> Vec<u8> {
    let mut out = b"catga/ln".to_vec();
    for word in [1u16, 1, place.shard, place.shards, 0, u16::from(keyed)] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for word in [1024 * 1024u32, 8192, offers.len() as u32] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&7u64.to_le_bytes()); // incarnation
    out.extend_from_slice(&[0; 16]); // nonce
    put_text(&mut out, cluster);
    put_text(&mut out, node);
    put_text(&mut out, place.endpoint);
    out.extend_from_slice(&0u32.to_le_bytes()); // extensions
    for offer in offers {
        out.extend_from_slice(&offer.id.0.to_le_bytes());
        out.extend_from_slice(&[offer.kind as u8, 1]);
        put_text(&mut out, offer.name);
        out.push(offer.accepts().count() as u8); // layouts
        for fingerprint in offer.accepts() {
            out.extend_from_slice(&fingerprint.to_le_bytes());
            out.extend_from_slice(&0u16.to_le_bytes()); // fields
        }
    }
    out
}

/// The shard that a Hello asks for.
pub(crate) fn wanted_shard(hello: &[u8]) -> u16 {
    u16::from_le_bytes([hello[16], hello[17]])
}

/// A proof: the label, and the texts behind their lengths.
pub(crate) fn proof(key: &[u8], label: &str, texts: &[&[u8]]) -> [u8; PROOF] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(label.as_bytes());
    for text in texts {
        mac.update(&(text.len() as u64).to_le_bytes());
        mac.update(text);
    }
    mac.finalize().into_bytes().into()
}

/// What an acceptor says after its greeting: the greeting and its proof.
pub(crate) fn welcome(key: &[u8], hello: &[u8], greeting: &[u8]) -> Vec<u8> {
    [greeting, &proof(key, "catga lane welcome v1", &[hello, greeting])].concat()
}

/// The dialer's proof, after these two payloads.
pub(crate) fn dialers_proof(key: &[u8], hello: &[u8], welcome: &[u8]) -> [u8; PROOF] {
    let (greeting, proven) = welcome.split_last_chunk::<PROOF>().unwrap();
    proof(key, "catga lane proof v1", &[hello, greeting, proven])
}

impl Peer {
    pub(crate) fn dial(endpoint: SocketAddr) -> Self {
        Self::on(TcpStream::connect(endpoint).unwrap())
    }

    /// As [`dial`](Self::dial), from this address of the loopback, which is nobody else's: a port of 127.0.0.1 may be the
    /// source of two connections at once, so it does not tell in a log who somebody was.
    pub(crate) fn dial_from(own: Ipv4Addr, endpoint: SocketAddr) -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((own, 0))).unwrap();
        connect(&socket, &endpoint).unwrap();
        Self::on(socket.into())
    }

    /// Takes the connection that an engine makes to `listener`, and the greetings with it, as node `node`.
    pub(crate) fn welcome(listener: &TcpListener, node: &str, offers: &[Contract]) -> Self {
        let (mut peer, hello) = Self::greeted(listener);
        peer.answer(&hello, &greeting("catga", node, false, offers));
        peer
    }

    /// Answers a Hello with this greeting, without a key.
    pub(crate) fn answer(&mut self, hello: &[u8], greeting: &[u8]) {
        let welcome = welcome(b"", hello, greeting);
        self.send(Header::new(Kind::Welcome), &welcome);
        let (answer, proof) = self.frame().expect("a Proof");
        assert_eq!((answer.kind, &proof[..]), (Kind::Proof, &dialers_proof(b"", hello, &welcome)[..]));
    }

    /// Takes the connection that an engine makes to `listener`, and its Hello. Answers nothing.
    pub(crate) fn greeted(listener: &TcpListener) -> (Self, Vec<u8>) {
        let mut peer = Self::on(listener.accept().unwrap().0);
        let (header, hello) = peer.frame().expect("a Hello");
        assert_eq!(header.kind, Kind::Hello);
        (peer, hello)
    }

    /// Dials, and greets as node `node`. [`frame`](Self::frame) proves itself when it sees the Welcome.
    pub(crate) fn hello(endpoint: SocketAddr, cluster: &str, node: &str) -> Self {
        Self::hello_with(endpoint, b"", greeting(cluster, node, false, &[]))
    }

    /// Dials, and says this greeting, which is proven by this key.
    pub(crate) fn hello_with(endpoint: SocketAddr, key: &[u8], greeting: Vec<u8>) -> Self {
        Self::dial(endpoint).greets(key, greeting)
    }

    /// Says this greeting, which is proven by this key.
    pub(crate) fn greets(mut self, key: &[u8], greeting: Vec<u8>) -> Self {
        self.send(Header::new(Kind::Hello), &greeting);
        self.hello = Some((key.to_vec(), greeting));
        self
    }

    /// From now on it proves nothing by itself.
    pub(crate) fn unproven(mut self) -> Self {
        self.hello = None;
        self
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, hello: None }
    }

    /// The address by which the engine knows it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        // The engine may have closed already: then the test sees that next.
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        self.raw(&framed(header, payload));
    }

    /// Archives a message as the payload of a frame.
    pub(crate) fn say<M: Message>(&mut self, header: Header, message: &M) {
        self.raw(&archived(header, message));
    }

    /// Keeps its lane by signs of life, and reads nothing, until what this returns is dropped.
    pub(crate) fn only_lives(mut self) -> mpsc::Sender<()> {
        let (held, is_over) = mpsc::channel();
        std::thread::spawn(move || {
            let pause = Duration::from_millis(50);
            while is_over.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                self.send(Header::new(Kind::Heartbeat), &[]);
            }
        });
        held
    }

    /// The next frame, or nothing if the engine has closed the connection. A Welcome is answered with the proof.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).ok()?;
        let parsed = Header::read(&header).unwrap();
        let length = parsed.length as usize;
        let mut rest = vec![0; length.next_multiple_of(16) - HEADER];
        self.stream.read_exact(&mut rest).ok()?;
        rest.truncate(length - HEADER);
        if parsed.kind == Kind::Heartbeat && parsed.code == 2 {
            // The engine asks for an echo.
            self.send(Header { code: 3, ..Header::new(Kind::Heartbeat) }, &[]);
        }
        if parsed.kind == Kind::Welcome
            && let Some((key, hello)) = self.hello.take()
        {
            self.send(Header::new(Kind::Proof), &dialers_proof(&key, &hello, &rest));
        }
        Some((parsed, rest))
    }

    /// The next frame that is not a heartbeat.
    pub(crate) fn news(&mut self) -> Option<Frame> {
        loop {
            match self.frame()? {
                (header, _) if header.kind == Kind::Heartbeat => {}
                frame => return Some(frame),
            }
        }
    }

    /// Reads until the engine closes the connection, and says with which reason if it gave one.
    pub(crate) fn closed(&mut self) -> Option<u16> {
        let mut reason = None;
        while let Some((header, _)) = self.frame() {
            if header.kind == Kind::Close {
                reason = Some(header.code);
            }
        }
        reason
    }
}

/// The header of a request.
pub(crate) fn request(slot: u32) -> Header {
    let call = CallId::new(slot, 1);
    Header { call, remaining_us: 10_000_000, ..Header::new(Kind::Request) }
}
