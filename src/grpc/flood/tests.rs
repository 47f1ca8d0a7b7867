//! Floods and honest traffic, however their bytes are cut.

use proptest::prelude::*;

use super::*;

const LIMITS: FrameLimits =
    FrameLimits { control_frames_per_second: 20, resets_per_second: 5, continuations: 3 };
const RATE: u64 = 20;

const DATA: u8 = KIND_DATA;
const HEADERS: u8 = KIND_HEADERS;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = KIND_RST_STREAM;
const SETTINGS: u8 = KIND_SETTINGS;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = KIND_CONTINUATION;

fn frame(kind: u8, flags: u8, length: u32) -> Vec<u8> {
    let [_, high, middle, low] = length.to_be_bytes();
    let mut bytes = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
    bytes.resize(HEAD_BYTES + usize::try_from(length).unwrap(), 0);
    bytes
}

/// A follower that has seen the preface.
fn follower() -> FrameFollower {
    let mut follower = FrameFollower::new(LIMITS);
    follower.push(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Duration::ZERO).unwrap();
    follower
}

/// How many of these frames are taken at one moment, and what is said about the next.
fn check(frames: &[Vec<u8>], taken: usize, verdict: Result<(), Flood>) {
    let mut follower = follower();
    let first_bad =
        frames.iter().cycle().take(100_000).enumerate().find_map(|(position, frame)| {
            follower.push(frame, Duration::ZERO).err().map(|flood| (position, flood))
        });
    let expected = verdict.err().map(|flood| (taken, flood));
    assert_eq!(first_bad, expected, "{frames:?}");
}

#[test]
fn what_carries_no_request_is_bounded() {
    let burst = usize::try_from(RATE * BURST_SECONDS).unwrap();
    for kind in [PING, WINDOW_UPDATE, PRIORITY, 7, 10, 255] {
        check(&[frame(kind, 0, 8)], burst, Err(Flood::Control));
    }
    // An answer to what nobody asked: h2 logs a warning for each.
    check(&[frame(PING, FLAG_ACK, 8)], burst, Err(Flood::Control));
    check(&[frame(SETTINGS, FLAG_ACK, 0)], burst, Err(Flood::Control));
    check(&[frame(SETTINGS, 0, 6)], burst / 10, Err(Flood::Control));
    check(&[frame(DATA, 0, 0)], burst, Err(Flood::Control));
    check(&[frame(DATA, FLAG_PADDED, 9)], burst, Err(Flood::Control));
    check(&[frame(CONTINUATION, FLAG_END_HEADERS, 9)], burst, Err(Flood::Control));
    check(&[frame(RST_STREAM, 0, 4)], 50, Err(Flood::Resets));
    check(&[frame(HEADERS, FLAG_END_HEADERS, 9), frame(RST_STREAM, 0, 4)], 101, Err(Flood::Resets));
    check(&[frame(PING, 0, FRAME_BYTES_MAX + 1)], 0, Err(Flood::FrameSize));
}

#[test]
fn what_carries_a_request_is_not_counted_and_pays_for_the_rest() {
    check(&[frame(DATA, 0, 1)], 0, Ok(()));
    check(&[frame(DATA, 0, FRAME_BYTES_MAX)], 0, Ok(()));
    check(&[frame(DATA, FLAG_END_STREAM, 0)], 0, Ok(()));
    let request = frame(HEADERS, FLAG_END_HEADERS, 40);
    let ping = frame(PING, 0, 8);
    let window = frame(WINDOW_UPDATE, 0, 4);
    let body = frame(DATA, FLAG_END_STREAM, 30);
    check(&[request.clone(), body, ping, window.clone(), window], 0, Ok(()));
    // Ten for one is not an honest price.
    let settings = frame(SETTINGS, 0, 0);
    check(&[request, settings], 2 * 96 + 1, Err(Flood::Control));
}

#[test]
fn a_header_block_has_few_pieces() {
    let more = frame(CONTINUATION, 0, 1);
    let first = frame(HEADERS, 0, 1);
    let last = frame(CONTINUATION, FLAG_END_HEADERS, 1);
    let whole = [first.clone(), more.clone(), more.clone(), last];
    check(&whole, 0, Ok(()));
    check(&[first, more.clone(), more.clone(), more.clone(), more], 4, Err(Flood::Continuations));
}

#[test]
fn an_allowance_fills_again_but_not_beyond_its_burst() {
    let mut follower = follower();
    let mut taken_at = |seconds: u64| {
        let now = Duration::from_secs(seconds);
        (0..100_000).take_while(|_| follower.push(&frame(PING, 0, 8), now).is_ok()).count()
    };
    assert_eq!(taken_at(0), 200);
    assert_eq!(taken_at(1), 20);
    assert_eq!(taken_at(1_000_000), 200);
    // Time that stands still or goes back gives nothing.
    assert_eq!(taken_at(999_999), 0);
}

#[test]
fn answers_pay_for_a_part_of_the_next_flood_only() {
    for (question, answer_bytes) in [(frame(PING, 0, 8), 17), (frame(SETTINGS, 0, 0), 9)] {
        let mut follower = follower();
        let taken = (0..100_000).take_while(|_| {
            follower.note_written(answer_bytes);
            follower.push(&question, Duration::ZERO).is_ok()
        });
        assert!(taken.count() < 300);
    }
}

#[test]
fn what_is_half_sent_is_known_by_its_age() {
    let seconds = Duration::from_secs;
    let check = |bytes: &[u8], since: Option<u64>, seen: bool| {
        let mut follower = follower();
        for (position, byte) in bytes.iter().enumerate() {
            let now = seconds(u64::try_from(position).unwrap());
            follower.push(std::slice::from_ref(byte), now).unwrap();
        }
        assert_eq!(follower.unfinished_since(), since.map(seconds), "{bytes:?}");
        assert_eq!(follower.has_seen_header_block(), seen, "{bytes:?}");
    };
    check(b"", None, false);
    check(b"\0", Some(0), false);
    check(&frame(PING, 0, 8)[..16], Some(0), false);
    check(&frame(PING, 0, 8), None, false);
    check(&frame(HEADERS, FLAG_END_HEADERS, 1)[..9], Some(0), false);
    check(&frame(HEADERS, FLAG_END_HEADERS, 1), None, true);
    check(&frame(HEADERS, FLAG_END_HEADERS, 0), None, true);
    // A block in pieces is as old as its first byte.
    let pieces = [frame(HEADERS, 0, 1), frame(CONTINUATION, 0, 1)].concat();
    check(&pieces, Some(0), false);
    check(&[pieces, frame(CONTINUATION, FLAG_END_HEADERS, 0)].concat(), None, true);
    // DATA has the deadline of its call.
    check(&frame(DATA, 0, 8)[..12], None, false);
    check(&[frame(DATA, 0, 8), vec![0, 0]].concat(), Some(17), false);
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![20 => 0_u32..40, 1 => FRAME_BYTES_MAX - 1..FRAME_BYTES_MAX + 2];
    (0_u8..12, any::<u8>(), length).prop_map(|(kind, flags, length)| frame(kind, flags, length))
}

/// Everything that can be seen from outside.
fn seen(follower: &FrameFollower, verdict: Result<(), Flood>) -> impl PartialEq + std::fmt::Debug {
    // After a flood nothing else counts.
    let standing = (follower.has_seen_header_block(), follower.unfinished_since());
    verdict.map(|()| standing)
}

proptest! {
    #[test]
    fn how_bytes_are_cut_makes_no_difference(
        frames in prop::collection::vec(any_frame(), 0..120),
        cut_short in 0_usize..30,
        sizes in prop::collection::vec(1_usize..50, 1..40),
    ) {
        let mut bytes = frames.concat();
        bytes.truncate(bytes.len().saturating_sub(cut_short));
        let now = Duration::from_secs(3);
        let mut whole = follower();
        let verdict = whole.push(&bytes, now);
        let expected = seen(&whole, verdict);

        let mut cut = follower();
        let (mut rest, mut sizes) = (&*bytes, sizes.into_iter().cycle());
        let mut verdict = Ok(());
        while !rest.is_empty() && verdict.is_ok() {
            let (piece, behind) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            verdict = cut.push(piece, now);
            rest = behind;
        }
        prop_assert_eq!(seen(&cut, verdict), expected);
    }

    /// Whatever the order and the times: no more than the burst, the rate and what was paid for.
    #[test]
    fn no_order_of_frames_gets_more_than_the_rate(
        steps in prop::collection::vec((0_u8..10, 0_u64..400), 1..400),
    ) {
        let mut follower = follower();
        let (mut now, mut taken, mut paid) = (Duration::ZERO, 0, 0);
        for (kind, milliseconds) in steps {
            now += Duration::from_millis(milliseconds);
            let flags = FLAG_END_HEADERS;
            let kind = if kind == RST_STREAM { PING } else { kind };
            let weight = match kind {
                DATA => 0,
                HEADERS => { paid += EARNED_BY_REQUEST; 0 }
                SETTINGS => SETTINGS_WEIGHT,
                _ => 1,
            };
            if follower.push(&frame(kind, flags, 5), now).is_ok() {
                taken += weight;
            }
            let bound = RATE * BURST_SECONDS + RATE * (now.as_secs() + 1) + paid;
            prop_assert!(taken <= bound, "{} > {}", taken, bound);
        }
    }

    /// Requests and replies of every size as fast as can be, with all that honest clients add.
    #[test]
    fn an_honest_client_is_never_cut(
        calls in prop::collection::vec((0_u32..16_384, 0_u64..100_000, 1_u64..4), 1..300),
    ) {
        let mut follower = follower();
        let now = Duration::ZERO;
        let mut push = |bytes: &[u8]| follower.push(bytes, now);
        prop_assert_eq!(push(&frame(SETTINGS, 0, 24)), Ok(()));
        prop_assert_eq!(push(&frame(SETTINGS, FLAG_ACK, 0)), Ok(()));
        for (request_bytes, reply_bytes, per_frame) in calls {
            prop_assert_eq!(follower.push(&frame(HEADERS, FLAG_END_HEADERS, 60), now), Ok(()));
            prop_assert_eq!(follower.push(&frame(DATA, 0, request_bytes.max(1)), now), Ok(()));
            prop_assert_eq!(follower.push(&frame(DATA, FLAG_END_STREAM, 0), now), Ok(()));
            // The reply comes in frames; each may be answered by two window updates and a PING.
            let replies = reply_bytes / 4096 + 1;
            for _ in 0..replies {
                follower.note_written(reply_bytes.min(4096) + 9);
                for _ in 0..per_frame {
                    let kind = if per_frame == 1 { PING } else { WINDOW_UPDATE };
                    prop_assert_eq!(follower.push(&frame(kind, 0, 8), now), Ok(()));
                }
            }
        }
    }
}
