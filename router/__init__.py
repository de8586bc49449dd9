"""The router process: it orders each channel and sends each message once to every worker with members."""
