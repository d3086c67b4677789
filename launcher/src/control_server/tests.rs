use std::os::unix::fs::PermissionsExt;

use comm::Blame;
use comm::bootstrap::Store;
use comm::control::{ControlClient, Phase, StopFlag};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn listen(world_size: usize) -> (ControlServer, UnboundedReceiver<Message>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (ControlServer::listen(0..world_size, StoreLocation::Local, sender).unwrap(), receiver)
}

fn failed(exit_code: u8, message: &str) -> ToLauncher {
    ToLauncher::Failed { exit_code, message: message.to_owned(), blame: Blame::Nobody }
}

/// Returns the next message other than heartbeats, which come at any time.
async fn next(messages: &mut UnboundedReceiver<Message>) -> Option<Message> {
    loop {
        match messages.recv().await {
            Some(Message::Said { message: ToLauncher::Heartbeat, .. }) => {}
            message => return message,
        }
    }
}

/// Runs `work`, the trainer's blocking end of a connection, beside the control server.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.await.unwrap()
}

#[tokio::test]
async fn ranks_find_each_others_values_in_either_order() {
    let (server, _messages) = listen(2);
    let socket = server.socket().to_owned();
    let found = blocking(move || {
        let first = ControlClient::connect(&socket, 0, StopFlag::default()).unwrap();
        let second = ControlClient::connect(&socket, 1, StopFlag::default()).unwrap();
        first.put("early", "1").unwrap();
        let early = second.get("early", SOON).unwrap();
        let late = std::thread::scope(|scope| {
            let late = scope.spawn(|| second.get("late", SOON).unwrap());
            first.put("late", "2").unwrap();
            first.put("late", "3").unwrap();
            late.join().unwrap()
        });
        [early, late, second.get("late", SOON).unwrap()]
    });
    assert_eq!(found.await, ["1", "2", "2"].map(|value| Some(value.to_owned())));
}

#[tokio::test]
async fn what_a_rank_says_arrives_in_order() {
    let (server, mut messages) = listen(1);
    let socket = server.socket().to_owned();
    blocking(move || {
        let client = ControlClient::connect(&socket, 0, StopFlag::default()).unwrap();
        client.send(&ToLauncher::State { phase: Phase::Training, epoch: 1, step: 3 }).unwrap();
        client.send(&failed(6, "NaN")).unwrap();
    })
    .await;
    let Some(Message::Said { rank: 0, message: ToLauncher::State { step: 3, .. } }) =
        next(&mut messages).await
    else {
        panic!("no state")
    };
    let Some(Message::Said { message: ToLauncher::Failed { exit_code: 6, .. }, .. }) =
        next(&mut messages).await
    else {
        panic!("no failure")
    };
}

#[tokio::test]
async fn a_closed_connection_is_drained() {
    let (server, mut messages) = listen(1);
    let socket = server.socket().to_owned();
    blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let version = VERSION.to_owned();
        let hello = ToLauncher::Hello { protocol: PROTOCOL, rank: 0, pid: 1, version };
        control::write_frame(&mut stream, &hello).unwrap();
        control::write_frame(&mut stream, &failed(7, "out of memory")).unwrap();
    })
    .await;
    server.drained(0).await;
    assert!(matches!(
        messages.try_recv(),
        Ok(Message::Said { message: ToLauncher::Failed { exit_code: 7, .. }, .. })
    ));
}

#[tokio::test]
async fn ranks_that_connect_after_a_stop_are_asked_too() {
    let (server, _messages) = listen(2);
    server.stop("SIGTERM");
    let socket = server.socket().to_owned();
    let received = blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let version = VERSION.to_owned();
        let hello = ToLauncher::Hello { protocol: PROTOCOL, rank: 1, pid: 1, version };
        control::write_frame(&mut stream, &hello).unwrap();
        control::read_frame::<ToTrainer>(&mut stream).unwrap()
    });
    assert_eq!(received.await, Some(ToTrainer::Stop { reason: "SIGTERM".into() }));
}

#[tokio::test]
async fn a_trainer_of_another_version_is_refused_by_name() {
    let (server, mut messages) = listen(1);
    let socket = server.socket().to_owned();
    blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let hello =
            ToLauncher::Hello { protocol: PROTOCOL + 1, rank: 0, pid: 1, version: "9.9.9".into() };
        control::write_frame(&mut stream, &hello).unwrap();
        assert_eq!(control::read_frame::<ToTrainer>(&mut stream).unwrap(), None);
    })
    .await;
    let Some(Message::Refused { rank: 0, reason }) = messages.recv().await else {
        panic!("not refused")
    };
    assert!(reason.contains("9.9.9") && reason.contains(VERSION), "{reason}");
}

#[tokio::test]
async fn the_socket_is_private_and_goes_away() {
    let (server, _messages) = listen(1);
    let socket = server.socket().to_owned();
    let folder = socket.parent().unwrap().to_owned();
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    drop(server);
    assert!(!folder.exists());

    let (server, _messages) = listen(1);
    let socket = server.socket().to_owned();
    let client = blocking(move || {
        let client = ControlClient::connect(&socket, 0, StopFlag::default()).unwrap();
        client.put("key", "value").unwrap();
        client.get("key", SOON).unwrap();
        client
    });
    let _client = client.await;
    assert!(!server.socket().exists(), "all ranks are connected");
}

#[tokio::test]
async fn values_that_are_kept_elsewhere_are_asked_for_and_passed_on() {
    let (sender, mut messages) = mpsc::unbounded_channel();
    let server = ControlServer::listen(2..3, StoreLocation::Node0, sender).unwrap();
    let socket = server.socket().to_owned();
    let found = tokio::spawn(blocking(move || {
        let client = ControlClient::connect(&socket, 2, StopFlag::default()).unwrap();
        client.put("mine", "1").unwrap();
        client.get("theirs", SOON).unwrap()
    }));
    let said = next(&mut messages).await;
    let Some(Message::Said { rank: 2, message: ToLauncher::Put { key, .. } }) = said else {
        panic!("not passed on: {said:?}")
    };
    assert_eq!(key, "mine");
    let said = next(&mut messages).await;
    assert!(
        matches!(said, Some(Message::Said { message: ToLauncher::Get { .. }, .. })),
        "{said:?}"
    );
    server.store().put("theirs".to_owned(), "2".to_owned());
    assert_eq!(found.await.unwrap().as_deref(), Some("2"));

    let (node, mut asked) = mpsc::unbounded_channel();
    server.store().get_for(node, "theirs".to_owned());
    let value = ToMember::Value { key: "theirs".to_owned(), value: "2".to_owned() };
    assert_eq!(asked.recv().await, Some(value));
}
