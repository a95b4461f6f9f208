//! Changes a running guest over from the server of its base to the file: one command of the plan after the other, each when
//! the hypervisor has answered the one before.

use std::fs::File;

use super::monitor::Monitor;
use crate::folder::Settling;

/// What is to be done for this, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Settler {
    settling: Option<Settling>,
    /// The step whose answer is awaited.
    at: Option<usize>,
}

impl Settler {
    pub(super) fn new(settling: Option<Settling>) -> Settler {
        Settler { settling, at: None }
    }

    /// Begins, unless it is under way.
    pub(super) fn begin(&mut self, monitor: &mut Monitor) -> Result<(), String> {
        let (Some(settling), None) = (&self.settling, self.at) else { return Ok(()) };
        let file = File::open(&settling.base);
        let file = file.map_err(|error| format!("open {}: {error}", settling.base.display()))?;
        let first = settling.steps.first().ok_or("the plan has no steps")?;
        monitor.execute_with(first, &file).map_err(|error| format!("hand the image's file over: {error}"))?;
        self.at = Some(0);
        Ok(())
    }

    /// Goes on with what the hypervisor has answered; says how it ended when it has.
    pub(super) fn answered(&mut self, answer: Result<(), String>, monitor: &mut Monitor) -> Option<Result<(), String>> {
        let (settling, at) = (self.settling.as_ref()?, self.at?);
        let is_last = at + 1 >= settling.steps.len();
        match answer {
            // What is left then is a node that nobody uses.
            Err(_) if is_last => {}
            Err(detail) => {
                for command in &settling.undo {
                    monitor.execute_plain(command);
                }
                self.at = None;
                return Some(Err(detail));
            }
            Ok(()) => {}
        }
        if is_last {
            (self.settling, self.at) = (None, None);
            return Some(Ok(()));
        }
        self.at = Some(at + 1);
        monitor.execute_asking(&settling.steps[at + 1]);
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use serde_json::{Value, json};

    use super::*;
    use crate::guard::monitor::News;

    /// A monitor that has come up, and its other end.
    fn monitor() -> (Monitor, BufReader<UnixStream>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        theirs.write_all(b"{\"return\": {}, \"id\": \"ready\"}\n").unwrap();
        assert_eq!(monitor.receive(), Some(vec![News::Ready]));
        (monitor, BufReader::new(theirs))
    }

    fn heard(theirs: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        theirs.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Answers a command, and gives what comes of it.
    fn answer(
        settler: &mut Settler,
        monitor: &mut Monitor,
        theirs: &mut BufReader<UnixStream>,
        said: &Value,
    ) -> Option<Result<(), String>> {
        let mut said = said.clone();
        said["id"] = heard(theirs)["id"].clone();
        theirs.get_mut().write_all(format!("{said}\n").as_bytes()).unwrap();
        let Some(News::Answered(result)) = monitor.receive().unwrap().pop() else { panic!("no answer was heard") };
        settler.answered(result, monitor)
    }

    fn settler(base: &std::path::Path) -> Settler {
        let steps = ["one", "two", "three"].map(|name| json!({ "execute": name })).into();
        let undo = vec![json!({ "execute": "back" })];
        Settler::new(Some(Settling { base: base.to_owned(), steps, undo }))
    }

    #[test]
    fn each_step_waits_for_the_answer_to_the_one_before() {
        let base = tempfile::NamedTempFile::new().unwrap();
        let (mut monitor, mut theirs) = monitor();
        let mut settler = settler(base.path());
        settler.begin(&mut monitor).unwrap();
        settler.begin(&mut monitor).unwrap();
        let good = json!({ "return": {} });
        assert_eq!(answer(&mut settler, &mut monitor, &mut theirs, &good), None);
        assert_eq!(answer(&mut settler, &mut monitor, &mut theirs, &good), None);
        assert_eq!(answer(&mut settler, &mut monitor, &mut theirs, &good), Some(Ok(())));
        assert_eq!(settler.answered(Ok(()), &mut monitor), None, "an answer that nobody asked for");
    }

    #[test]
    fn a_step_that_fails_is_undone_and_all_can_be_tried_again() {
        let base = tempfile::NamedTempFile::new().unwrap();
        let (mut monitor, mut theirs) = monitor();
        let mut settler = settler(base.path());
        settler.begin(&mut monitor).unwrap();
        let bad = json!({ "error": { "class": "GenericError", "desc": "no such node" } });
        let ended = answer(&mut settler, &mut monitor, &mut theirs, &bad);
        assert_eq!(ended, Some(Err("no such node".to_owned())));
        assert_eq!(heard(&mut theirs), json!({ "execute": "back" }));
        settler.begin(&mut monitor).unwrap();
        assert_eq!(heard(&mut theirs)["execute"], "one");
    }

    #[test]
    fn a_file_that_is_not_there_is_said_and_nothing_is_begun() {
        let (mut monitor, _theirs) = monitor();
        let mut settler = settler(std::path::Path::new("/no/such/file"));
        assert!(settler.begin(&mut monitor).unwrap_err().contains("/no/such/file"));
    }
}
