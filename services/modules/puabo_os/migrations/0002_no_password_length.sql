-- How long a password has to be says the password policy of user-auth, and nothing beside it.
DELETE FROM settings WHERE key = 'security.password_min_length';
DELETE FROM platform_settings WHERE key = 'security.password_min_length';
