//! What came of the checks, for a reader.

use std::fmt::{self, Display, Formatter};

use super::rules::Rule;

/// A rule that the host broke, and how that was seen.
#[derive(Debug)]
pub struct Failure {
    /// What had been asked about this server before.
    pub after: String,
    /// The call.
    pub sent: String,
    /// What came of it.
    pub came: String,
    /// What should have.
    pub rule: &'static Rule,
}

/// Of one check; what passed may say more.
pub type Verdict = Result<String, Failure>;

/// One check.
#[derive(Debug)]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// `None`: it was not made, since the host did not answer earlier ones.
    pub verdict: Option<Verdict>,
}

impl Outcome {
    /// Whether it was made and nothing was found.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self.verdict, Some(Ok(_)))
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Some(Ok(more)) if more.is_empty() => write!(f, "pass  {}", self.name),
            Some(Ok(more)) => write!(f, "pass  {}: {more}", self.name),
            Some(Err(failure)) => write!(f, "FAIL  {}\n{failure}", self.name),
            None => write!(f, "-     {}: not checked, see above", self.name),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.after.is_empty() {
            writeln!(f, "      after     {}", self.after)?;
        }
        writeln!(f, "      sent      {}", self.sent)?;
        writeln!(f, "      came      {}", self.came)?;
        writeln!(f, "      contract  {}", self.rule.contract)?;
        write!(f, "      change    {}", self.rule.change)
    }
}
