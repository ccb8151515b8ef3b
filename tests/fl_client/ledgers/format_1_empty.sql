BEGIN TRANSACTION;
CREATE TABLE curve (
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, version TEXT NOT NULL,
  rdp BLOB NOT NULL,
  PRIMARY KEY (noise_multiplier, sampling_rate, version)) WITHOUT ROWID;
CREATE TABLE job (
  job_id TEXT PRIMARY KEY, key TEXT NOT NULL REFERENCES patient_set, charges TEXT NOT NULL,
  closed INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL);
CREATE TABLE patient_set (
  key TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL);
CREATE TABLE reserved (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES patient_set, job_id TEXT NOT NULL,
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
  what TEXT NOT NULL);
CREATE TABLE round (
  job_id TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL, input_hash BLOB NOT NULL,
  reply BLOB,
  PRIMARY KEY (job_id, number));
CREATE TABLE spent (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES patient_set, job_id TEXT NOT NULL,
  round INTEGER NOT NULL,
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
  what TEXT NOT NULL,
  at REAL NOT NULL);
CREATE TRIGGER spent_is_kept BEFORE DELETE ON spent
  BEGIN SELECT RAISE(ABORT, 'spent rows stay'); END;
CREATE TRIGGER spent_is_fixed BEFORE UPDATE ON spent
  BEGIN SELECT RAISE(ABORT, 'spent rows stay'); END;
COMMIT;
