mod plans;
mod rules;
mod runs;
