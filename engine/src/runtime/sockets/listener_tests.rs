use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Barrier;

use super::super::tests::{Directory, any_port};
use super::*;

fn refusal(path: &Path) -> io::Error {
    listen(&Endpoint::Unix(path.into())).unwrap_err()
}

#[test]
fn the_file_is_its_owners_alone_and_goes_with_the_listener() {
    let directory = Directory::new("file");
    let path = directory.join("a.sock");
    let listener = listen(&Endpoint::Unix(path.clone())).unwrap();
    assert_eq!(local_endpoint(&listener).unwrap().to_string(), format!("unix:{}", path.display()));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert!(UnixStream::connect(&path).is_ok());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_file_that_somebody_has_put_in_its_place_outlives_the_listener() {
    let directory = Directory::new("place");
    let path = directory.join("a.sock");
    let listener = listen(&Endpoint::Unix(path.clone())).unwrap();
    // Made before the first is removed, or it could get the same inode.
    let other = UnixListener::bind(directory.join("b.sock")).unwrap();
    fs::rename(directory.join("b.sock"), &path).unwrap();
    drop(listener);
    assert!(UnixStream::connect(&path).is_ok());
    drop(other);
}

#[test]
fn a_stale_file_is_replaced() {
    let directory = Directory::new("stale");
    let path = directory.join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    let _listener = listen(&Endpoint::Unix(path.clone())).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn an_endpoint_where_somebody_listens_is_an_error_and_they_listen_on() {
    let directory = Directory::new("living");
    let path = directory.join("a.sock");
    let living = listen(&Endpoint::Unix(path.clone())).unwrap();
    let error = refusal(&path);
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("a.sock: another process listens here"), "{error}");
    assert!(UnixStream::connect(&path).is_ok());
    drop(living);
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    assert_eq!(refusal(&path).kind(), io::ErrorKind::AddrInUse);
    assert!(path.exists());

    let living = listen(&any_port()).unwrap();
    let at = local_endpoint(&living).unwrap();
    let error = listen(&at).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("{at}: another process listens here")), "{error}");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let directory = Directory::new("alone");
    let (file, inner, link) = (directory.join("file"), directory.join("inner"), directory.join("link"));
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    for path in [&file, &inner, &link] {
        let error = refusal(path);
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("is no socket, and was left alone"), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(inner.is_dir() && link.is_symlink());
}

#[test]
fn without_its_directory_the_error_names_that() {
    let directory = Directory::new("missing");
    let error = refusal(&directory.join("absent/a.sock"));
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("cannot open the directory"), "{error}");
}

#[test]
fn of_many_starts_at_one_stale_path_exactly_one_listens() {
    const STARTS: usize = 8;
    let directory = Directory::new("many");
    for round in 0..20 {
        let path = directory.join(&format!("{round}.sock"));
        drop(UnixListener::bind(&path).unwrap());
        let barrier = Barrier::new(STARTS);
        let listeners = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                listen(&Endpoint::Unix(path.clone()))
            };
            let starts: Vec<_> = (0..STARTS).map(|_| scope.spawn(start)).collect();
            starts.into_iter().filter_map(|start| start.join().unwrap().ok()).collect::<Vec<_>>()
        });
        assert_eq!(listeners.len(), 1, "round {round}");
        assert!(UnixStream::connect(&path).is_ok());
    }
}

#[test]
fn a_start_does_not_wait_for_ever_for_another_one() {
    let directory = Directory::new("locked");
    let path = directory.join("a.sock");
    let alone = lock_directory(&path).unwrap();
    assert_eq!(refusal(&path).kind(), io::ErrorKind::ResourceBusy);
    drop(alone);
    assert!(listen(&Endpoint::Unix(path)).is_ok());
}
