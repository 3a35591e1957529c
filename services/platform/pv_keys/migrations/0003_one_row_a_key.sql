-- A private key has one row, and so one policy, one count and one set of slots, however it came here: by two spellings
-- of a path, by a mnemonic that was imported twice. Where there are two, which one's policy holds is for people to say.
ALTER TABLE private_keys ADD UNIQUE (tenant_id, curve, public_key, hd_root);
