const button = document.getElementById("use-passkey");
if (window.PublicKeyCredential?.parseRequestOptionsFromJSON) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const options = JSON.parse(button.dataset.options);
    const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
    const credential = await navigator.credentials.get({ publicKey });
    button.form.elements.passkey.value = JSON.stringify(credential.toJSON());
    button.form.submit();
  });
}
