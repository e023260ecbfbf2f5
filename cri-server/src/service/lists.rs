//! ListContainers and ListPodSandbox, answered from encodings that are kept beside the objects: a kubelet asks for all
//! of them every second, and most are what they were. Everything else goes to the service within.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use prost::Message;
use proto::cri::{ListContainersRequest, ListPodSandboxRequest};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request, Response};
use tonic::server::{Grpc, NamedService};
use tower::{Service, service_fn};

use super::MESSAGE_LIMIT;
use crate::daemon::Daemon;
use crate::rpc;

const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";

/// The lists of a daemon before the service `S`.
#[derive(Clone)]
pub struct Lists<S> {
    /// Whose lists.
    pub daemon: Arc<Daemon>,
    /// What serves all other calls.
    pub within: S,
}

impl<S: NamedService> NamedService for Lists<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Lists<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.within.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let daemon = self.daemon.clone();
        match request.uri().path() {
            CONTAINERS => answer(request, move |list: ListContainersRequest| {
                rpc::list_containers::encoded(&daemon, list)
            }),
            SANDBOXES => answer(request, move |list: ListPodSandboxRequest| {
                rpc::list_pod_sandbox::encoded(&daemon, list)
            }),
            _other => Box::pin(self.within.call(request)),
        }
    }
}

fn answer<M: Message + Default + 'static>(
    request: Request<Body>,
    list: impl FnOnce(M) -> Vec<Bytes> + Send + 'static,
) -> Answer {
    let mut list = Some(list);
    let method = service_fn(move |request: tonic::Request<M>| {
        let pieces = list.take().map(|list| list(request.into_inner()));
        std::future::ready(pieces.map(tonic::Response::new).ok_or_else(|| Status::internal("called twice")))
    });
    let grpc = Grpc::new(Pieces(PhantomData));
    let mut grpc = grpc.apply_max_message_size_config(Some(MESSAGE_LIMIT), Some(MESSAGE_LIMIT));
    Box::pin(async move { Ok(grpc.unary(method, request).await) })
}

/// Takes a message, and gives one that is there in encoded pieces.
struct Pieces<M>(PhantomData<fn(M)>);

impl<M: Message + Default + 'static> Codec for Pieces<M> {
    type Encode = Vec<Bytes>;
    type Decode = M;
    type Encoder = Joined;
    type Decoder = Whole<M>;

    fn encoder(&mut self) -> Joined {
        Joined
    }

    fn decoder(&mut self) -> Whole<M> {
        Whole(PhantomData)
    }
}

struct Joined;

impl Encoder for Joined {
    type Item = Vec<Bytes>;
    type Error = Status;

    fn encode(&mut self, pieces: Vec<Bytes>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| into.put_slice(piece));
        Ok(())
    }
}

struct Whole<M>(PhantomData<fn(M)>);

impl<M: Message + Default + 'static> Decoder for Whole<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let message = M::decode(from);
        message.map(Some).map_err(|error| Status::internal(format!("the request is no message: {error}")))
    }
}
