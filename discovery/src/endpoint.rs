//! Where a node listens: an address and port, or a socket in the file system.
//!
//! The text form is what people write into a list and what nodes tell each other: `10.0.0.1:5001`, `[::1]:5001`, or
//! `unix:/run/a.sock`. A host's name is no endpoint, because who dials must not wait for a resolver. It is checked once,
//! where it comes in; reading what was printed gives the same endpoint again.
#![forbid(unsafe_code)]

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

const UNIX: &str = "unix:";

/// Where a node listens for lanes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A TCP address and port.
    Tcp(SocketAddr),
    /// A socket in the file system, by its absolute path: for nodes on one machine.
    Unix(PathBuf),
}

impl Endpoint {
    /// The longest path of a socket, in bytes: what Linux has room for, without the byte that ends it.
    pub const PATH_BYTES_MAX: usize = 107;

    /// Whether only this machine can reach it: a loopback address, or a socket in the file system.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// The TCP address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

/// A text that is no [`Endpoint`]. Nothing was opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Neither an address and port nor `unix:` and a path.
    #[error(
        "`{text}` is not of the form address:port, such as 10.0.0.1:5001 or [::1]:5001, or unix:/path; \
         the name of a host is not an address"
    )]
    Form {
        /// The text.
        text: String,
    },
    /// A path that means another socket in another working directory.
    #[error("the path in `{text}` must be absolute, such as unix:/run/a.sock")]
    Relative {
        /// The text.
        text: String,
    },
    /// A path for which the system has no room.
    #[error(
        "the path of a socket must have at most {} bytes; this one has {bytes}",
        Endpoint::PATH_BYTES_MAX
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A path with a character that cannot be printed.
    #[error("the path of a socket must not contain {character:?}")]
    Character {
        /// The first such character.
        character: char,
    },
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Self::Tcp).map_err(|_| EndpointError::Form { text: text.into() });
        };
        if !path.starts_with('/') {
            return Err(EndpointError::Relative { text: text.into() });
        }
        if path.len() > Self::PATH_BYTES_MAX {
            return Err(EndpointError::TooLong { bytes: path.len() });
        }
        match path.chars().find(|character| character.is_control()) {
            Some(character) => Err(EndpointError::Character { character }),
            None => Ok(Self::Unix(path.into())),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back_as_the_same_endpoint() {
        for text in ["10.0.0.1:5001", "[::1]:5001", "unix:/run/a.sock", "unix:/run/with space/a:1.sock"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
            assert_eq!(
                endpoint.address(),
                text.parse().ok(),
                "who listens in the file system has no address"
            );
        }
    }

    #[test]
    fn a_text_that_is_no_endpoint_is_refused_with_the_reason() {
        let refused = |text: &str| text.parse::<Endpoint>().unwrap_err();
        for text in ["", "orders:5001", "10.0.0.1", "10.0.0.1:70000", "/run/a.sock", "UNIX:/run/a.sock"] {
            assert_eq!(refused(text), EndpointError::Form { text: text.into() });
        }
        assert_eq!(refused("unix:a.sock"), EndpointError::Relative { text: "unix:a.sock".into() });
        assert_eq!(refused("unix:/a\0b"), EndpointError::Character { character: '\0' });
        let longest = format!("unix:/{}", "a".repeat(Endpoint::PATH_BYTES_MAX - 1));
        assert!(longest.parse::<Endpoint>().is_ok());
        assert_eq!(refused(&format!("{longest}a")), EndpointError::TooLong { bytes: 108 });
    }

    #[test]
    fn only_what_this_machine_alone_can_reach_is_loopback() {
        let loopback = |text: &str| text.parse::<Endpoint>().unwrap().is_loopback();
        assert!(
            ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/a"].map(loopback)
                == [true; 5]
        );
        assert!(["0.0.0.0:1", "10.0.0.1:1", "[::]:1"].map(loopback) == [false; 3]);
    }
}
