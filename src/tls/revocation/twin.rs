//! A certificate whose ECDSA signature is written in its other way: of (r, s) and (r, order - s) both verify, and whoever
//! has one can make the other. A fingerprint on a deny list must not be evaded by that.
//!
//! It makes bytes to be hashed; nothing is verified or signed.

use x509_parser::asn1_rs::Any;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The orders of P-256, P-384 and P-521, the curves of which signatures are accepted. Which one it is only the
/// issuer's key tells, so all are tried: a wrong one makes a certificate that nobody has.
const ORDERS: [&[u8]; 3] = [
    b"ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    b"ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    b"01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// The same certificate with the other signature, for each curve that it may be of; none when the signature is of
/// another kind.
pub(super) fn twins(der: &[u8], certificate: &X509Certificate<'_>) -> Vec<Vec<u8>> {
    let signed = certificate.tbs_certificate.as_ref();
    let parts = algorithm(der, signed).zip(numbers(&certificate.signature_value.data));
    let Some((algorithm, (r, s))) = parts else { return Vec::new() };
    let twin = |order: &&[u8]| {
        let order = BigUint::parse_bytes(order, 16).filter(|order| s < *order)?;
        let mut other = (order - &s).to_bytes_be();
        if other.first().is_some_and(|first| *first >= 0x80) {
            other.insert(0, 0);
        }
        let signature = encoded(SEQUENCE, &[r, &encoded(INTEGER, &[&other])]);
        let signature = encoded(BIT_STRING, &[&[0], &signature]);
        Some(encoded(SEQUENCE, &[signed, algorithm, &signature]))
    };
    ORDERS.iter().filter_map(twin).collect()
}

/// What stands between what is signed and the signature.
fn algorithm<'a>(der: &'a [u8], signed: &[u8]) -> Option<&'a [u8]> {
    let (_, outer) = Any::from_der(der).ok()?;
    first(outer.data.get(signed.len()..)?)
}

/// The first value, with its head.
fn first(bytes: &[u8]) -> Option<&[u8]> {
    let (rest, _) = Any::from_der(bytes).ok()?;
    bytes.get(..bytes.len().checked_sub(rest.len())?)
}

/// The first number of an ECDSA signature as it stands there, and the second.
fn numbers(signature: &[u8]) -> Option<(&[u8], BigUint)> {
    let (_, outer) = Any::from_der(signature).ok()?;
    let r = first(outer.data)?;
    let (_, s) = Any::from_der(outer.data.get(r.len()..)?).ok()?;
    Some((r, BigUint::from_bytes_be(s.data)))
}

/// DER of a tag and what stands in it.
fn encoded(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let length = length.get(zeros..).unwrap_or_default();
    let mut bytes = vec![tag];
    match length {
        [] => bytes.push(0),
        [short] if *short < 0x80 => bytes.push(*short),
        long => {
            bytes.push(0x80 | u8::try_from(long.len()).unwrap_or_default());
            bytes.extend_from_slice(long);
        }
    }
    bytes.extend(content);
    bytes
}
