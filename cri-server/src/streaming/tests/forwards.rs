//! Port-forward over SPDY.

use super::*;
use crate::streaming::spdy::Control;
use crate::streaming::spdy::client::Said;

async fn pair(client: &mut Spdy, request: &str, port: &str) -> (u32, u32) {
    let mut ids = Vec::new();
    for half in ["error", "data"] {
        let mut headers = vec![("streamType", half), ("port", port)];
        headers.extend((!request.is_empty()).then_some(("requestID", request)));
        ids.push(client.open(&headers).await);
    }
    (ids[0], ids[1])
}

#[tokio::test]
async fn pairs_are_forwarded_by_themselves() {
    let (server, _node) = start();
    for named in [true, false] {
        let request = |name| if named { name } else { "" };
        let mut client = dial_spdy(&server.url_for(forward(&[])).unwrap(), "portforward.k8s.io").await;
        let (good_error, good) = pair(&mut client, request("a"), "80").await;
        let (bad_error, bad) = pair(&mut client, request("b"), "1").await;
        let texts = client.drain(&[bad_error]).await;
        let text = &texts[&bad_error].0;
        assert_eq!(text, "error forwarding port 1 to pod p1: port \"p1:1\" is not found");
        client.send(bad, b"to nobody", Part::Last).await;
        // The other pair goes on, and its answer comes after its end.
        client.send(good, b"hello", Part::Last).await;
        let texts = client.drain(&[good, good_error]).await;
        assert_eq!(texts[&good], ("80:hello".into(), true));
        assert_eq!(texts[&good_error], (String::new(), true));
    }
}

#[tokio::test]
async fn a_pair_that_fails_is_reset() {
    let (server, _node) = start();
    let mut client = dial_spdy(&server.url_for(forward(&[])).unwrap(), "portforward.k8s.io").await;
    let (error, data) = pair(&mut client, "a", "1").await;
    let mut reset = Vec::new();
    while reset.len() < 2 {
        if let Said::Control(Control::RstStream { id, .. }) = client.next().await.unwrap() {
            reset.push(id);
        }
    }
    reset.sort_unstable();
    assert_eq!(reset, [error, data]);
}

#[tokio::test]
async fn bad_halves_are_refused_alone() {
    let (server, _node) = start_impatient();
    let mut client = dial_spdy(&server.url_for(forward(&[])).unwrap(), "portforward.k8s.io").await;
    let check = async |client: &mut Spdy, headers: &[(&str, &str)], status: Option<u32>| {
        let id = client.open(headers).await;
        match (client.next().await, status) {
            (Some(Said::Control(Control::SynReply { id: replied, .. })), None) => assert_eq!(replied, id),
            (said, status) => {
                let expect = status.map(|status| Said::Control(Control::RstStream { id, status }));
                assert_eq!(said, expect, "{headers:?}");
            }
        }
    };
    check(&mut client, &[("streamType", "data"), ("requestID", "a")], Some(1)).await;
    check(&mut client, &[("streamType", "data"), ("port", "0"), ("requestID", "a")], Some(1)).await;
    check(&mut client, &[("streamType", "data"), ("port", "65536"), ("requestID", "a")], Some(1)).await;
    check(&mut client, &[("streamType", "other"), ("port", "80"), ("requestID", "a")], Some(1)).await;
    check(&mut client, &[("streamType", "data"), ("port", "80"), ("requestID", "a")], None).await;
    check(&mut client, &[("streamType", "data"), ("port", "80"), ("requestID", "a")], Some(3)).await;
    // The half that waits in vain is given up, and the connection still serves.
    let waiting = client.drain(&[9]).await;
    assert_eq!(waiting[&9], (String::new(), false));
    let (error, data) = pair(&mut client, "b", "80").await;
    client.send(data, b"on", Part::Last).await;
    assert_eq!(client.drain(&[data, error]).await[&data].0, "80:on");
}

#[tokio::test]
async fn a_hundred_pairs_share_a_connection() {
    let (server, _node) = start();
    let mut client = dial_spdy(&server.url_for(forward(&[])).unwrap(), "portforward.k8s.io").await;
    let mut ids = Vec::new();
    for request in 0..100 {
        let (_error, data) = pair(&mut client, &request.to_string(), "80").await;
        client.send(data, request.to_string().as_bytes(), Part::Last).await;
        ids.push(data);
    }
    let texts = client.drain(&ids).await;
    for (request, id) in ids.iter().enumerate() {
        assert_eq!(texts[id], (format!("80:{request}"), true));
    }
}
