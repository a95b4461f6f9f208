//! What holds of every decoder, on its corpus, on bent examples and on arbitrary bytes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// A corpus is read by people, and copied with every clone.
const CORPUS_FILES_MAX: usize = 64;
const CORPUS_FILE_BYTES_MAX: usize = 2048;
/// Places of an example that are tried one by one. What comes behind is more of the same.
const PLACES: usize = 256;
/// Twice what a decoder may take that has to keep nothing.
const ENDLESS_BYTES: usize = 16 << 20;

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn corpus(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("{}: {error}", target.name));
    let files = files.map(|file| file.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())).collect()
}

/// What is tried begins with what is accepted: were it all refused at its first byte, nothing would be tried.
#[test]
fn examples_are_accepted() {
    for target in TARGETS {
        for (name, bytes) in (target.examples)() {
            let decoded = target.decode(&bytes);
            assert!(decoded.is_ok(), "{} {name}: {}", target.name, decoded.unwrap_err());
        }
    }
}

/// With `BLIXARD_BLESS` set the corpora are made of the examples anew; what was found by fuzzing, in files that begin with
/// `found-`, stays. All else has to be accepted still: a corpus in an old encoding leads nowhere.
#[test]
fn corpora_are_small_and_accepted_and_break_nothing() {
    for target in TARGETS {
        if std::env::var_os("BLIXARD_BLESS").is_some() {
            std::fs::create_dir_all(folder(target)).unwrap();
            for name in corpus(target).into_keys().filter(|name| !name.starts_with("found-")) {
                std::fs::remove_file(folder(target).join(name)).unwrap();
            }
            for (name, bytes) in (target.examples)() {
                std::fs::write(folder(target).join(name), bytes).unwrap();
            }
        }
        let corpus = corpus(target);
        assert!((1..CORPUS_FILES_MAX).contains(&corpus.len()), "{}: {} files", target.name, corpus.len());
        for (name, bytes) in &corpus {
            assert!(bytes.len() <= CORPUS_FILE_BYTES_MAX, "{} {name}: {} bytes", target.name, bytes.len());
            target.check(bytes);
            if !name.starts_with("found-")
                && let Err(words) = target.decode(bytes)
            {
                let advice = "set BLIXARD_BLESS=1 to make the corpora anew";
                panic!("{} {name} is in the corpus and not accepted ({words}): {advice}", target.name);
            }
        }
    }
}

/// What is taken out of a path, a query and a body is in the document of the API, which is made of the same table as the router.
#[test]
fn every_request_that_is_read_has_an_example() {
    let requests = TARGETS.iter().find(|target| target.name == "request").unwrap();
    let examples: Vec<String> =
        (requests.examples)().into_iter().map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned()).collect();
    let (mut missing, document) = (vec![], blixard_node::api::openapi());
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().unwrap();
            let has_query = parameters.iter().any(|parameter| parameter["in"] == "query");
            let takes_json = operation["requestBody"]["content"].get("application/json").is_some();
            let is_it = |example: &String| {
                let mut words = example.split(' ');
                let is_method = words.next().is_some_and(|word| word.eq_ignore_ascii_case(method));
                let (asked, query) = words.next().map(|word| word.split_once('?').unwrap_or((word, ""))).unwrap();
                let (asked, path): (Vec<&str>, Vec<&str>) = (asked.split('/').collect(), path.split('/').collect());
                is_method
                    && has_query != query.is_empty()
                    && asked.len() == path.len()
                    && asked.iter().zip(path).all(|(asked, part)| part.starts_with('{') || *asked == part)
            };
            if (has_query || takes_json) && !examples.iter().any(is_it) {
                missing.push(format!("{method} {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "no example for {}", missing.join(", "));
}

#[test]
fn every_corpus_has_a_target() {
    let folders = std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
    let mut folders: Vec<String> = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
}

#[test]
fn no_example_is_accepted_when_it_is_cut_but_where_nothing_was_said_of_its_end() {
    // The others say how long they are, or close what they open.
    let open_ended = ["config", "disk", "kernel", "monitor", "raft_stream", "request", "ticket_content"];
    for target in TARGETS.iter().filter(|target| !open_ended.contains(&target.name)) {
        let accepted = (target.examples)().into_iter().filter(|(_, bytes)| target.decode(bytes).is_ok());
        for (name, bytes) in accepted {
            for cut in 0..bytes.len() {
                assert!(target.decode(&bytes[..cut]).is_err(), "{} {name} cut at {cut}", target.name);
            }
        }
    }
}

/// A change to an input.
#[derive(Debug, Clone)]
enum Bend {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, u8),
    Repeat(prop::sample::Index, u8),
    Cut(prop::sample::Index),
}

fn bends() -> impl Strategy<Value = Vec<Bend>> {
    let index = any::<prop::sample::Index>;
    let bend = prop_oneof![
        4 => (index(), prop_oneof![any::<u8>(), Just(0xff), Just(0x80), Just(0)]).prop_map(|(at, to)| Bend::Set(at, to)),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Bend::Insert(at, bytes)),
        2 => (index(), 1_u8..9).prop_map(|(at, count)| Bend::Remove(at, count)),
        1 => (index(), 1_u8..65).prop_map(|(at, count)| Bend::Repeat(at, count)),
        1 => index().prop_map(Bend::Cut),
    ];
    prop::collection::vec(bend, 1..6)
}

fn bent(mut input: Vec<u8>, bends: &[Bend]) -> Vec<u8> {
    for bend in bends.iter() {
        let Some(last) = input.len().checked_sub(1) else { break };
        let place = |index: &prop::sample::Index| index.index(last + 1);
        match bend {
            Bend::Set(at, to) => input[place(at)] = *to,
            Bend::Insert(at, bytes) => drop(input.splice(place(at)..place(at), bytes.iter().copied())),
            Bend::Remove(at, count) => drop(input.drain(place(at)..(place(at) + usize::from(*count)).min(last + 1))),
            Bend::Repeat(at, count) => {
                let piece = input[place(at)..(place(at) + usize::from(*count)).min(last + 1)].repeat(3);
                drop(input.splice(place(at)..place(at), piece));
            }
            Bend::Cut(at) => input.truncate(place(at)),
        }
    }
    input
}

/// Tries something on each target; what the panics said stands above the names.
fn name_all_that_break(try_one: impl Fn(&Target)) {
    let breaks = |target: &&Target| catch_unwind(AssertUnwindSafe(|| try_one(target))).is_err();
    let broken: Vec<&str> = TARGETS.iter().filter(breaks).map(|target| target.name).collect();
    assert!(broken.is_empty(), "broken: {}", broken.join(", "));
}

/// Inputs tried on each target.
const CASES: u32 = 512;

/// Tries each target on inputs of its own, so that what breaks it is cut down for it alone, and names all that break.
fn try_all(inputs: impl Fn(&Target) -> BoxedStrategy<Vec<u8>>) {
    let broken = TARGETS.iter().filter_map(|target| {
        let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
        let tried = TestRunner::new(config).run(&inputs(target), |input| {
            target.check(&input);
            Ok(())
        });
        Some(format!("{}: {}", target.name, tried.err()?))
    });
    let broken: Vec<String> = broken.collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn bent_examples_break_nothing() {
    try_all(|target| {
        let example = prop::sample::select((target.examples)()).prop_map(|(_, example)| example);
        (example, bends()).prop_map(|(example, bends)| bent(example, &bends)).boxed()
    });
}

#[test]
fn arbitrary_bytes_break_nothing() {
    try_all(|_| prop::collection::vec(any::<u8>(), 0..512).boxed());
}

/// JSON and TOML that nests, numbers without end, lists that claim to be huge: small inputs that ask for much.
#[test]
fn inputs_that_ask_for_much_get_little() {
    let nested = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let inputs: Vec<Vec<u8>> = vec![
        nested("[", "]").into(),
        nested("{\"a\":", "}").into(),
        ("a = ".to_owned() + &nested("[", "]")).into(),
        ("a".to_owned() + &".a".repeat(100_000) + " = 1").into(),
        ("[".to_owned() + &"a.".repeat(100_000) + "a]").into(),
        "1".repeat(1_000_000).into(),
        ("1e".to_owned() + &"9".repeat(1_000_000)).into(),
        vec![0xff; 1_000_000],
        vec![b'a'; ENDLESS_BYTES],
    ];
    // The longest length that postcard can write, in every place of every example.
    name_all_that_break(|target| {
        for (_, example) in (target.examples)() {
            for at in 0..example.len().min(PLACES) {
                let mut claiming = example.clone();
                drop(claiming.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0x0f]));
                target.check(&claiming);
            }
        }
        inputs.iter().for_each(|input| target.check(input));
    });
}

/// A limit is passed by one before it is passed by many.
#[test]
fn examples_that_are_off_by_one_break_nothing() {
    name_all_that_break(|target| {
        for (_, example) in (target.examples)() {
            for at in 0..example.len().min(PLACES) {
                for by in [1, u8::MAX] {
                    let mut off = example.clone();
                    off[at] = off[at].wrapping_add(by);
                    target.check(&off);
                }
            }
        }
    });
}
