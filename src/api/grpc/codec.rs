//! Protocol Buffers codec. Works like tonic's own, but limits the fields of a message before decoding, and reports an
//! invalid message as the caller's error.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use crate::api::error_table::ApiError;
use crate::limits;

/// Limit on top-level fields of one message: the items of the largest batch, and some more. Two bytes of an empty item
/// become hundreds in memory, so the fields are counted before decoding.
const FIELDS_MAX: usize = limits::BATCH_ITEMS_MAX + 256;

/// Codec of every method.
pub(crate) struct ProtoCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ProtoCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for ProtoCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProtoDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProtoDecoder(PhantomData)
    }
}

/// Decoder that checks a message before decoding it.
pub(crate) struct ProtoDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for ProtoDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        read(buffer.copy_to_bytes(buffer.remaining())).map(Some).map_err(|failure| failure.to_status())
    }
}

fn read<U: Message + Default>(message: Bytes) -> Result<U, ApiError> {
    let invalid = |error: DecodeError| ApiError::invalid("body", format!("is not a message of this method: {error}"));
    let mut rest = message.clone();
    let mut fields = 0;
    while rest.has_remaining() {
        if fields == FIELDS_MAX {
            return Err(ApiError::invalid("body", format!("at most {} items", limits::BATCH_ITEMS_MAX)));
        }
        fields += 1;
        let (tag, kind) = decode_key(&mut rest).map_err(invalid)?;
        skip_field(kind, tag, &mut rest, DecodeContext::default()).map_err(invalid)?;
    }
    U::decode(message).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::grpc::proto::{BatchTakeClaimsRequest, GetClaimRequest, TakeClaimRequest};

    #[test]
    fn a_message_with_too_many_fields_is_not_decoded() {
        let mut batch = BatchTakeClaimsRequest { mode: 1, items: vec![TakeClaimRequest::default(); FIELDS_MAX - 1] };
        assert_eq!(read::<BatchTakeClaimsRequest>(batch.encode_to_vec().into()).unwrap(), batch);
        batch.items.push(TakeClaimRequest::default());
        let failure = read::<BatchTakeClaimsRequest>(batch.encode_to_vec().into()).unwrap_err();
        assert_eq!((failure.field.as_deref(), &*failure.message), (Some("body"), "at most 10000 items"));
    }

    #[test]
    fn an_invalid_message_is_the_callers_error() {
        for bytes in [&b"\xff"[..], b"\x0a\x05ab", b"\x0a\x01\xff", b"\x08\x01", b"\x0b", b"\x00"] {
            let failure = read::<GetClaimRequest>(Bytes::copy_from_slice(bytes)).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("body"), "{bytes:?}");
        }
        // An unknown field comes from a later version.
        let later = b"\x0a\x02ns\x12\x01k\xfa\x06\x01x";
        let read = read::<GetClaimRequest>(Bytes::from_static(later)).unwrap();
        assert_eq!((read.namespace.as_str(), read.key.as_str(), read.tenant), ("ns", "k", None));
    }
}
