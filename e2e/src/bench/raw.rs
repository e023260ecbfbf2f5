//! A gRPC client that takes an answer as it came: how long a client takes to read it is not the runtime's affair.

use anyhow::{Context, Result};
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

/// Largest answer.
const LIMIT: usize = 16 << 20;

/// Calls a method of the runtime service, and gives the encoding of its answer.
pub async fn call(channel: Channel, method: &str, request: impl Message + 'static) -> Result<Bytes> {
    let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(LIMIT);
    grpc.ready().await.context("connect")?;
    let request = tonic::Request::new(Bytes::from(request.encode_to_vec()));
    Ok(grpc.unary(request, path, AsItIs).await.with_context(|| format!("call {method}"))?.into_inner())
}

struct AsItIs;

impl Codec for AsItIs {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(bytes);
        Ok(())
    }
}

impl Decoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
