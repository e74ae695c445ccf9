use proptest::{collection::vec, prelude::*};
use tokio_util::codec::Encoder;

use super::*;

fn frames(messages: &[Message]) -> Vec<u8> {
    let mut stream = bytes::BytesMut::new();
    for message in messages {
        codec().encode(wire::encode(message.clone()).unwrap(), &mut stream).unwrap();
    }
    stream.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_stream_makes_the_decoder_panic(stream in vec(any::<u8>(), 0..300)) {
        let _good_or_not = decode_stream(&stream);
    }

    #[test]
    fn a_cut_or_changed_stream_does_not_make_it_panic(cut in 0..60usize, at in 0..60usize, byte in any::<u8>()) {
        let mut stream = frames(&[Message::Fire, Message::Armed(7), Message::Probe(Default::default()), Message::Stop]);
        let at = at % stream.len();
        stream[at] = byte;
        stream.truncate(cut);
        let _good_or_not = decode_stream(&stream);
    }
}

#[test]
fn whole_streams_are_good() {
    assert_eq!(decode_stream(&frames(&[Message::Fire, Message::Keepalive, Message::End])).unwrap(), 3);
}

#[test]
fn truncated_and_oversized_frames_are_named() {
    let whole = frames(&[Message::Armed(7)]);
    insta::assert_snapshot!(decode_stream(&whole[..whole.len() - 1]).unwrap_err(), @"session: the input ended before the session was over; the other side was stopped or its connection broke");
    let length = u32::try_from(MAX_FRAME).unwrap() + 1;
    insta::assert_snapshot!(decode_stream(&length.to_be_bytes()).unwrap_err(), @"session: broken framing: a frame is longer than 65536 bytes; use podpath and podpath-agent of the same release");
}
