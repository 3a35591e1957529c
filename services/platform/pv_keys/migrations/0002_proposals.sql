-- A policy that waits for the approvals which the policy in force asks for.
ALTER TABLE private_keys
    ADD COLUMN proposal_id uuid,
    ADD COLUMN proposal jsonb,
    ADD COLUMN proposer_id uuid,
    ADD COLUMN proposal_approved_by uuid[] NOT NULL DEFAULT '{}',
    ADD CHECK ((proposal_id IS NULL) = (proposal IS NULL) AND (proposal IS NULL) = (proposer_id IS NULL));
